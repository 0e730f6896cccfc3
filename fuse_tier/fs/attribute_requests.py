"""Requests about attributes, extended ones among them."""

from __future__ import annotations

import errno
import os
from collections.abc import Coroutine
from struct import Struct
from typing import Any, Final

from fuse_tier.fs.bodies import Handler, name_in
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import NewAttributes, Request, attributes_of
from fuse_tier.mount.messages import STATFS, Opcode

_BILLION: Final = 1_000_000_000
_MODE: Final = 1 << 0  # FATTR_..., linux/fuse.h
_UID: Final = 1 << 1
_GID: Final = 1 << 2
_SIZE: Final = 1 << 3
_ACCESSED: Final = 1 << 4
_MODIFIED: Final = 1 << 5
_HANDLE: Final = 1 << 6
_KILLS_PRIVILEGES: Final = 1 << 11
_SETATTR: Final = Struct("=IIQQQqqqIIIIIIII")
_SETXATTR: Final = Struct("=II")
_XATTR_SIZE: Final = Struct("=II")


def _getattr(operations: Operations, request: Request, body: memoryview) -> bytes:
    return attributes_of(operations.getattr(request.node, request))


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


def _statfs(operations: Operations, request: Request, body: memoryview) -> bytes:
    found = operations.statfs(request)
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


async def _setxattr(operations: Operations, request: Request, body: memoryview) -> None:
    size, flags = _SETXATTR.unpack_from(body)
    name, _, rest = bytes(body[_SETXATTR.size :]).partition(b"\0")
    await operations.setxattr(request.node, name, rest[:size], flags, request)


def _getxattr(operations: Operations, request: Request, body: memoryview) -> bytes | Coroutine[Any, Any, bytes]:
    room, _ = _XATTR_SIZE.unpack_from(body)
    name = name_in(body, _XATTR_SIZE.size)
    if operations.never_has(name):
        raise OSError(errno.ENODATA, "no such attribute")
    return _fitting_attribute(operations, request, name, room)


async def _fitting_attribute(operations: Operations, request: Request, name: bytes, room: int) -> bytes:
    return _fitting(await operations.getxattr(request.node, name, request), room)


def _listxattr(operations: Operations, request: Request, body: memoryview) -> bytes:
    room, _ = _XATTR_SIZE.unpack_from(body)
    names = operations.listxattr(request.node, request)
    return _fitting(b"".join(name + b"\0" for name in names), room)


async def _removexattr(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.removexattr(request.node, name_in(body), request)


def _fitting(value: bytes, room: int) -> bytes:
    if not room:
        return _XATTR_SIZE.pack(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


ATTRIBUTE_REQUESTS: Final[dict[int, Handler]] = {
    Opcode.GETATTR: _getattr,
    Opcode.SETATTR: _setattr,
    Opcode.STATFS: _statfs,
    Opcode.SETXATTR: _setxattr,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.REMOVEXATTR: _removexattr,
}
