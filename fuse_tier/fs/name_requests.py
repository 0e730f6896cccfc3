"""Requests about names and directories."""

from __future__ import annotations

from struct import Struct
from typing import Final

from fuse_tier.fs.bodies import DATA_ONLY, HANDLE_FLAGS, READ, Handler, name_in, opened_reply, two_names_in
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Entry, ListingReply, Request
from fuse_tier.mount.messages import Opcode

_FORGET: Final = Struct("=Q")
_FORGET_HEAD: Final = Struct("=II")
_FORGET_ONE: Final = Struct("=QQ")
_MKNOD: Final = Struct("=IIII")  # mode, device, umask, padding
_MKDIR: Final = Struct("=II")  # mode, umask
_RENAME: Final = Struct("=Q")
_RENAME2: Final = Struct("=QII")
_LINK: Final = Struct("=Q")


def _lookup(operations: Operations, request: Request, body: memoryview) -> Entry:
    return operations.lookup(request.node, name_in(body), request)


def _forget(operations: Operations, request: Request, body: memoryview) -> None:
    operations.forget([(request.node, _FORGET.unpack_from(body)[0])])


def _batch_forget(operations: Operations, request: Request, body: memoryview) -> None:
    count, _ = _FORGET_HEAD.unpack_from(body)
    start = _FORGET_HEAD.size
    operations.forget(_FORGET_ONE.iter_unpack(body[start : start + count * _FORGET_ONE.size]))


def _readlink(operations: Operations, request: Request, body: memoryview) -> bytes:
    return operations.readlink(request.node, request)


async def _symlink(operations: Operations, request: Request, body: memoryview) -> Entry:
    name, target = two_names_in(body)
    return await operations.symlink(request.node, name, target, request)


async def _mknod(operations: Operations, request: Request, body: memoryview) -> Entry:
    mode, device, _, _ = _MKNOD.unpack_from(body)
    return await operations.mknod(request.node, name_in(body, _MKNOD.size), mode, device, request)


async def _mkdir(operations: Operations, request: Request, body: memoryview) -> Entry:
    mode, _ = _MKDIR.unpack_from(body)
    return await operations.mkdir(request.node, name_in(body, _MKDIR.size), mode, request)


async def _unlink(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.unlink(request.node, name_in(body), request)


async def _rmdir(operations: Operations, request: Request, body: memoryview) -> None:
    await operations.rmdir(request.node, name_in(body), request)


async def _rename(operations: Operations, request: Request, body: memoryview) -> None:
    (parent,) = _RENAME.unpack_from(body)
    old, new = two_names_in(body, _RENAME.size)
    await operations.rename(request.node, old, parent, new, 0, request)


async def _rename_with_flags(operations: Operations, request: Request, body: memoryview) -> None:
    parent, flags, _ = _RENAME2.unpack_from(body)
    old, new = two_names_in(body, _RENAME2.size)
    await operations.rename(request.node, old, parent, new, flags, request)


async def _link(operations: Operations, request: Request, body: memoryview) -> Entry:
    (inode,) = _LINK.unpack_from(body)
    return await operations.link(inode, request.node, name_in(body, _LINK.size), request)


def _opendir(operations: Operations, request: Request, body: memoryview) -> bytes:
    return opened_reply(operations.opendir(request.node, request))


async def _readdir(operations: Operations, request: Request, body: memoryview) -> bytearray:
    handle, offset, size = READ.unpack_from(body)
    reply = ListingReply(size, with_attributes=request.opcode == Opcode.READDIRPLUS)
    await operations.readdir(request.node, handle, offset, reply)
    return reply.content


def _releasedir(operations: Operations, request: Request, body: memoryview) -> None:
    operations.releasedir(HANDLE_FLAGS.unpack_from(body)[0])


async def _fsyncdir(operations: Operations, request: Request, body: memoryview) -> None:
    handle, flags = HANDLE_FLAGS.unpack_from(body)
    await operations.fsyncdir(handle, bool(flags & DATA_ONLY))


NAME_REQUESTS: Final[dict[int, Handler]] = {
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _forget,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.READLINK: _readlink,
    Opcode.SYMLINK: _symlink,
    Opcode.MKNOD: _mknod,
    Opcode.MKDIR: _mkdir,
    Opcode.UNLINK: _unlink,
    Opcode.RMDIR: _rmdir,
    Opcode.RENAME: _rename,
    Opcode.RENAME2: _rename_with_flags,
    Opcode.LINK: _link,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _readdir,
    Opcode.READDIRPLUS: _readdir,
    Opcode.RELEASEDIR: _releasedir,
    Opcode.FSYNCDIR: _fsyncdir,
}
