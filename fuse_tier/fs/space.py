"""Operations on the content of open files, and on the room that it takes.

What finds no room waits until there is some, for as long as some may come (room.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.fs.base import Shared
from fuse_tier.fs.handles import OpenFile
from fuse_tier.fs.requests import Request
from fuse_tier.fs.syscalls import drop_privileges
from fuse_tier.ram.room import NO_ROOM

T = TypeVar("T")

Written = int | Coroutine[Any, Any, int]
"""How much of a write was done, or what goes on with it when there is room."""

_SOON_BYTES: Final = 16 << 20  # so much is copied or allocated in a moment; more in a thread
_TRIES: Final = 4  # others may be faster
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE (linux/falloc.h); all others take nothing, or no more than is there
_MOST_BYTES: Final = 1 << 30  # in one step, so that an end does not wait long

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class SpaceOperations(Shared):
    """The operations of FUSE by these names; each raises OSError, EOPNOTSUPP for what a tmpfs cannot do."""

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Reads."""
        return os.pread(self._handles.files[handle].fd, size, offset)

    def write(self, handle: int, offset: int, content: memoryview, request: Request, *, from_cache: bool) -> Written:
        """Writes, at once if there is room; what there is no room for in the end is not counted.

        For what comes ``from_cache`` nobody waits, so it does not, either.
        """
        file = self._handles.files[handle]
        if request.kills_privileges:
            drop_privileges(file.fd)
        if file.writing is not None:
            file.writing.synced = False
        self._demand(file.fd, offset + len(content))
        if from_cache:
            return os.pwrite(file.fd, content, offset)
        written = _write_what_fits(file.fd, content, offset)
        if written == len(content):
            return written
        return self._write_rest(file.fd, bytes(content), offset, written)

    async def _write_rest(self, fd: int, content: bytes, offset: int, written: int) -> int:
        """Writes what there was no room for when there is. It may be interrupted: what was written then counts."""
        give_up = trio.current_time() + Deadline.ROOM_COMING
        try:
            while written < len(content) and trio.current_time() < give_up:
                if not await self._room.obtain(len(content) - written):
                    break
                written += _write_what_fits(fd, memoryview(content)[written:], offset + written)
        except trio.Cancelled:
            if not written:
                raise
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    async def fallocate(self, handle: int, mode: int, offset: int, size: int) -> None:
        """Allocates or frees room, in all ways that a tmpfs has."""
        file = self._written(handle)
        if not mode & ~_KEEP_SIZE:
            self._demand(file.fd, offset + size)
        await self._with_room(size, partial(_soon, size, _allocate, file.fd, mode, offset, size))
        self._changes.record()

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """Finds data or a hole."""
        return os.lseek(self._handles.files[handle].fd, offset, whence)

    async def copy_file_range(self, source: int, start: int, target: int, to: int, size: int, flags: int) -> int:
        """Copies within the mount; gives how much was."""
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        read, written = self._handles.files[source], self._written(target)
        size = min(size, _MOST_BYTES)
        self._demand(written.fd, to + size)
        copy = partial(_soon, size, os.copy_file_range, read.fd, written.fd, size, start, to)
        return await self._with_room(min(size, _SOON_BYTES), copy)

    async def _with_room(self, size: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` gives, which takes no more than so much room, and leaves nothing when there is none."""
        for _ in range(_TRIES):
            try:
                return await attempt()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
            if not await self._room.obtain(size):
                break
        return await attempt()

    def _demand(self, fd: int, end: int) -> None:
        if self._share.limit and not self._share.admits(fd, end):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _written(self, handle: int) -> OpenFile:
        file = self._handles.files[handle]
        if file.writing is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        file.writing.synced = False
        return file


async def _soon(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Does at once what is done in a moment, and in a thread what takes longer."""
    if size > _SOON_BYTES:
        return await trio.to_thread.run_sync(work, *arguments)
    return work(*arguments)


def _write_what_fits(fd: int, content: memoryview, offset: int) -> int:
    try:
        return os.pwrite(fd, content, offset)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return 0


def _allocate(fd: int, mode: int, offset: int, size: int) -> None:
    if _fallocate(fd, mode, offset, size) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
