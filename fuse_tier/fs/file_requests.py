"""Requests about open files and their content."""

from __future__ import annotations

import errno
import os
from collections.abc import Coroutine
from struct import Struct
from typing import Any, Final

from fuse_tier.fs.bodies import DATA_ONLY, HANDLE_FLAGS, READ, Handler, name_in, opened_reply
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Request
from fuse_tier.mount.messages import OPEN_KILLS_PRIVILEGES, WRITE_FROM_CACHE, WRITE_KILLS_PRIVILEGES, Opcode

_OPEN: Final = Struct("=II")
_CREATE: Final = Struct("=IIII")  # flags, mode, umask, open flags
_WRITE: Final = Struct("=QQII")
_WRITE_BYTES: Final = 40
_WRITTEN: Final = Struct("=II")
_FALLOCATE: Final = Struct("=QQQII")
_LSEEK: Final = Struct("=QQII")
_FOUND: Final = Struct("=q")
_COPY: Final = Struct("=QQQQQQQ")


async def _open(operations: Operations, request: Request, body: memoryview) -> bytes:
    flags, how = _OPEN.unpack_from(body)
    request.kills_privileges = bool(how & OPEN_KILLS_PRIVILEGES)
    return opened_reply(await operations.open(request.node, flags, request))


async def _create(operations: Operations, request: Request, body: memoryview) -> bytes:
    flags, mode, _, how = _CREATE.unpack_from(body)
    request.kills_privileges = bool(how & OPEN_KILLS_PRIVILEGES)
    opened, entry = await operations.create(request.node, name_in(body, _CREATE.size), mode, flags, request)
    return entry + opened_reply(opened)


async def _tmpfile(operations: Operations, request: Request, body: memoryview) -> bytes:
    flags, mode, _, _ = _CREATE.unpack_from(body)
    opened, entry = await operations.tmpfile(request.node, mode, flags, request)
    return entry + opened_reply(opened)


def _read(operations: Operations, request: Request, body: memoryview) -> bytes:
    handle, offset, size = READ.unpack_from(body)
    return operations.read(handle, offset, size)


def _write(operations: Operations, request: Request, body: memoryview) -> bytes | Coroutine[Any, Any, bytes]:
    handle, offset, size, flags = _WRITE.unpack_from(body)
    request.kills_privileges = bool(flags & WRITE_KILLS_PRIVILEGES)
    content = body[_WRITE_BYTES : _WRITE_BYTES + size]
    written = operations.write(handle, offset, content, request, from_cache=bool(flags & WRITE_FROM_CACHE))
    return _WRITTEN.pack(written, 0) if isinstance(written, int) else _write_in_time(written)


async def _write_in_time(writing: Coroutine[Any, Any, int]) -> bytes:
    return _WRITTEN.pack(await writing, 0)


def _release(operations: Operations, request: Request, body: memoryview) -> None:
    operations.release(HANDLE_FLAGS.unpack_from(body)[0])


async def _fsync(operations: Operations, request: Request, body: memoryview) -> None:
    handle, flags = HANDLE_FLAGS.unpack_from(body)
    await operations.fsync(handle, bool(flags & DATA_ONLY))


async def _fallocate(operations: Operations, request: Request, body: memoryview) -> None:
    handle, offset, size, mode, _ = _FALLOCATE.unpack_from(body)
    await operations.fallocate(handle, mode, offset, size)


def _lseek(operations: Operations, request: Request, body: memoryview) -> bytes:
    handle, offset, whence, _ = _LSEEK.unpack_from(body)
    return _FOUND.pack(operations.lseek(handle, offset, whence))


async def _copy_file_range(operations: Operations, request: Request, body: memoryview) -> bytes:
    source, start, _, target, to, size, flags = _COPY.unpack_from(body)
    return _WRITTEN.pack(await operations.copy_file_range(source, start, target, to, size, flags), 0)


def _ioctl(operations: Operations, request: Request, body: memoryview) -> None:
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


FILE_REQUESTS: Final[dict[int, Handler]] = {
    Opcode.OPEN: _open,
    Opcode.CREATE: _create,
    Opcode.TMPFILE: _tmpfile,
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.RELEASE: _release,
    Opcode.FSYNC: _fsync,
    Opcode.FALLOCATE: _fallocate,
    Opcode.LSEEK: _lseek,
    Opcode.COPY_FILE_RANGE: _copy_file_range,
    Opcode.IOCTL: _ioctl,
}
