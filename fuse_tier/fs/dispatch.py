"""From messages to operations and back: one function for each kind of request.

A message stands in a buffer that the next one overwrites, so all that an operation keeps is copied out of it
before the operation first waits; a write's content is not, because a write never waits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from struct import Struct
from typing import Any, Final

from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Entry, ListingReply, NewAttributes, Opened, Request, attributes_of
from fuse_tier.fs.session import Answer, Operation
from fuse_tier.mount.messages import (
    OPEN_KILLS_PRIVILEGES,
    OPENED,
    STATFS,
    WRITE_KILLS_PRIVILEGES,
    Opcode,
)

_BILLION: Final = 1_000_000_000
_MODE: Final = 1 << 0  # FATTR_..., linux/fuse.h
_UID: Final = 1 << 1
_GID: Final = 1 << 2
_SIZE: Final = 1 << 3
_ACCESSED: Final = 1 << 4
_MODIFIED: Final = 1 << 5
_HANDLE: Final = 1 << 6
_KILLS_PRIVILEGES: Final = 1 << 11
_ONLY_ATTRIBUTES_OF_HANDLE: Final = 1 << 0  # FUSE_GETATTR_FH
_DATA_ONLY: Final = 1 << 0  # FUSE_FSYNC_FDATASYNC

_FORGET: Final = Struct("=Q")
_FORGET_HEAD: Final = Struct("=II")
_FORGET_ONE: Final = Struct("=QQ")
_GETATTR: Final = Struct("=IIQ")
_SETATTR: Final = Struct("=IIQQQqqqIIIIIIII")
_MKNOD: Final = Struct("=IIII")  # mode, device, umask, padding
_MKDIR: Final = Struct("=II")  # mode, umask
_RENAME: Final = Struct("=Q")
_RENAME2: Final = Struct("=QII")
_LINK: Final = Struct("=Q")
_OPEN: Final = Struct("=II")
_CREATE: Final = Struct("=IIII")  # flags, mode, umask, open flags
_READ: Final = Struct("=QQI")
_WRITE: Final = Struct("=QQII")
_WRITE_BYTES: Final = 40
_WRITTEN: Final = Struct("=II")
_HANDLE_FLAGS: Final = Struct("=QI")
_SETXATTR: Final = Struct("=II")
_XATTR_SIZE: Final = Struct("=II")
_FALLOCATE: Final = Struct("=QQQII")
_LSEEK: Final = Struct("=QQII")
_FOUND: Final = Struct("=q")
_COPY: Final = Struct("=QQQQQQQ")

_Handler = Callable[[Operations, Request, memoryview], Coroutine[Any, Any, Answer]]


def dispatch(operations: Operations) -> dict[int, Operation]:
    """What to call for each kind of request that is answered; the kernel gets ENOSYS for others."""

    def bound(handler: _Handler) -> Operation:
        return lambda request, body: handler(operations, request, body)

    return {opcode: bound(handler) for opcode, handler in _HANDLERS.items()}


def opened_handle(opcode: int, answer: Answer) -> int | None:
    """The handle of a file that a reply opens, if it is one that does."""
    if not answer or opcode not in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE):
        return None
    return int(OPENED.unpack_from(answer, len(answer) - OPENED.size)[0])


def _name(body: memoryview, offset: int = 0) -> bytes:
    return bytes(body[offset:-1])


def _two_names(body: memoryview, offset: int = 0) -> tuple[bytes, bytes]:
    first, _, second = _name(body, offset).partition(b"\0")
    return first, second


def _opened(opened: Opened) -> bytes:
    return OPENED.pack(opened.handle, opened.flags, opened.backing)


async def _lookup(operations: Operations, request: Request, body: memoryview) -> Entry:
    return await operations.lookup(request.node, _name(body), request)


async def _forget(operations: Operations, request: Request, body: memoryview) -> None:
    operations.forget([(request.node, _FORGET.unpack_from(body)[0])])


async def _batch_forget(operations: Operations, request: Request, body: memoryview) -> None:
    count, _ = _FORGET_HEAD.unpack_from(body)
    start = _FORGET_HEAD.size
    operations.forget(_FORGET_ONE.iter_unpack(body[start : start + count * _FORGET_ONE.size]))


async def _getattr(operations: Operations, request: Request, body: memoryview) -> bytes:
    return attributes_of(await operations.getattr(request.node, request))


async def _setattr(operations: Operations, request: Request, body: memoryview) -> bytes:
    (valid, _, handle, size, _, accessed, modified, _, accessed_ns, modified_ns, _, mode, _, uid, gid, _) = (
        _SETATTR.unpack_from(body)
    )
    request.kills_privileges = bool(valid & _KILLS_PRIVILEGES)
    wanted = NewAttributes(
        mode=mode if valid & _MODE else None,
        uid=uid if valid & _UID else None,
        gid=gid if valid & _GID else None,
        size=size if valid & _SIZE else None,
        accessed_ns=accessed * _BILLION + accessed_ns if valid & _ACCESSED else None,
        modified_ns=modified * _BILLION + modified_ns if valid & _MODIFIED else None,
    )
    return attributes_of(await operations.setattr(request.node, wanted, handle if valid & _HANDLE else None, request))


async def _readlink(operations: Operations, request: Request, body: memoryview) -> bytes:
    return await operations.readlink(request.node, request)


async def _symlink(operations: Operations, request: Request, body: memoryview) -> Entry:
    name, target = _two_names(body)
    return await operations.symlink(request.node, name, target, request)


async def _mknod(operations: Operations, request: Request, body: memoryview) -> Entry:
    mode, device, _, _ = _MKNOD.unpack_from(body)
    return await operations.mknod(request.node, _name(body, _MKNOD.size), mode, device, request)


async def _mkdir(operations: Operations, request: Request, body: memoryview) -> Entry:
    mode, _ = _MKDIR.unpack_from(body)
    return await operations.mkdir(request.node, _name(body, _MKDIR.size), mode, request)


async def _unlink(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.unlink(request.node, _name(body), request)


async def _rmdir(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.rmdir(request.node, _name(body), request)


async def _rename(operations: Operations, request: Request, body: memoryview) -> None:
    (parent,) = _RENAME.unpack_from(body)
    old, new = _two_names(body, _RENAME.size)
    await operations.rename(request.node, old, parent, new, 0, request)


async def _rename_with_flags(operations: Operations, request: Request, body: memoryview) -> None:
    parent, flags, _ = _RENAME2.unpack_from(body)
    old, new = _two_names(body, _RENAME2.size)
    await operations.rename(request.node, old, parent, new, flags, request)


async def _link(operations: Operations, request: Request, body: memoryview) -> Entry:
    (inode,) = _LINK.unpack_from(body)
    return await operations.link(inode, request.node, _name(body, _LINK.size), request)


async def _open(operations: Operations, request: Request, body: memoryview) -> bytes:
    flags, how = _OPEN.unpack_from(body)
    request.kills_privileges = bool(how & OPEN_KILLS_PRIVILEGES)
    return _opened(await operations.open(request.node, flags, request))


async def _create(operations: Operations, request: Request, body: memoryview) -> bytes:
    flags, mode, _, how = _CREATE.unpack_from(body)
    request.kills_privileges = bool(how & OPEN_KILLS_PRIVILEGES)
    opened, entry = await operations.create(request.node, _name(body, _CREATE.size), mode, flags, request)
    return entry + _opened(opened)


async def _tmpfile(operations: Operations, request: Request, body: memoryview) -> bytes:
    flags, mode, _, _ = _CREATE.unpack_from(body)
    opened, entry = await operations.tmpfile(request.node, mode, flags, request)
    return entry + _opened(opened)


async def _read(operations: Operations, request: Request, body: memoryview) -> bytes:
    handle, offset, size = _READ.unpack_from(body)
    return operations.read(handle, offset, size)


async def _write(operations: Operations, request: Request, body: memoryview) -> bytes:
    handle, offset, size, flags = _WRITE.unpack_from(body)
    request.kills_privileges = bool(flags & WRITE_KILLS_PRIVILEGES)
    written = operations.write(handle, offset, body[_WRITE_BYTES : _WRITE_BYTES + size], request)
    return _WRITTEN.pack(written, 0)


async def _statfs(operations: Operations, request: Request, body: memoryview) -> bytes:
    found = await operations.statfs(request)
    return STATFS.pack(
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_bsize,
        found.f_namemax,
        found.f_frsize,
        0,
    )


async def _release(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.release(_HANDLE_FLAGS.unpack_from(body)[0])


async def _fsync(operations: Operations, request: Request, body: memoryview) -> None:
    handle, flags = _HANDLE_FLAGS.unpack_from(body)
    await operations.fsync(handle, bool(flags & _DATA_ONLY))


async def _setxattr(operations: Operations, request: Request, body: memoryview) -> None:
    size, flags = _SETXATTR.unpack_from(body)
    name, _, rest = bytes(body[_SETXATTR.size :]).partition(b"\0")
    await operations.setxattr(request.node, name, rest[:size], flags, request)


async def _getxattr(operations: Operations, request: Request, body: memoryview) -> bytes:
    room, _ = _XATTR_SIZE.unpack_from(body)
    return _fitting(await operations.getxattr(request.node, _name(body, _XATTR_SIZE.size), request), room)


async def _listxattr(operations: Operations, request: Request, body: memoryview) -> bytes:
    room, _ = _XATTR_SIZE.unpack_from(body)
    names = await operations.listxattr(request.node, request)
    return _fitting(b"".join(name + b"\0" for name in names), room)


def _fitting(value: bytes, room: int) -> bytes:
    if not room:
        return _XATTR_SIZE.pack(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


async def _removexattr(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.removexattr(request.node, _name(body), request)


async def _opendir(operations: Operations, request: Request, body: memoryview) -> bytes:
    return _opened(await operations.opendir(request.node, request))


async def _readdir(operations: Operations, request: Request, body: memoryview) -> bytearray:
    handle, offset, size = _READ.unpack_from(body)
    reply = ListingReply(size, with_attributes=request.opcode == Opcode.READDIRPLUS)
    await operations.readdir(request.node, handle, offset, reply)
    return reply.content


async def _releasedir(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.releasedir(_HANDLE_FLAGS.unpack_from(body)[0])


async def _fsyncdir(operations: Operations, request: Request, body: memoryview) -> None:
    handle, flags = _HANDLE_FLAGS.unpack_from(body)
    await operations.fsyncdir(handle, bool(flags & _DATA_ONLY))


async def _fallocate(operations: Operations, request: Request, body: memoryview) -> None:
    handle, offset, size, mode, _ = _FALLOCATE.unpack_from(body)
    await operations.fallocate(handle, mode, offset, size)


async def _lseek(operations: Operations, request: Request, body: memoryview) -> bytes:
    handle, offset, whence, _ = _LSEEK.unpack_from(body)
    return _FOUND.pack(operations.lseek(handle, offset, whence))


async def _copy_file_range(operations: Operations, request: Request, body: memoryview) -> bytes:
    source, start, _, target, to, size, flags = _COPY.unpack_from(body)
    return _WRITTEN.pack(await operations.copy_file_range(source, start, target, to, size, flags), 0)


async def _ioctl(operations: Operations, request: Request, body: memoryview) -> None:
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


async def _destroy(operations: Operations, request: Request, body: memoryview) -> None:
    """The mount has ended; the next read says so."""


_HANDLERS: Final[dict[int, _Handler]] = {
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _forget,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.GETATTR: _getattr,
    Opcode.SETATTR: _setattr,
    Opcode.READLINK: _readlink,
    Opcode.SYMLINK: _symlink,
    Opcode.MKNOD: _mknod,
    Opcode.MKDIR: _mkdir,
    Opcode.UNLINK: _unlink,
    Opcode.RMDIR: _rmdir,
    Opcode.RENAME: _rename,
    Opcode.RENAME2: _rename_with_flags,
    Opcode.LINK: _link,
    Opcode.OPEN: _open,
    Opcode.CREATE: _create,
    Opcode.TMPFILE: _tmpfile,
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.STATFS: _statfs,
    Opcode.RELEASE: _release,
    Opcode.FSYNC: _fsync,
    Opcode.SETXATTR: _setxattr,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.REMOVEXATTR: _removexattr,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _readdir,
    Opcode.READDIRPLUS: _readdir,
    Opcode.RELEASEDIR: _releasedir,
    Opcode.FSYNCDIR: _fsyncdir,
    Opcode.FALLOCATE: _fallocate,
    Opcode.LSEEK: _lseek,
    Opcode.COPY_FILE_RANGE: _copy_file_range,
    Opcode.IOCTL: _ioctl,
    Opcode.DESTROY: _destroy,
}
