"""Operations on the room that a file takes, and on ranges of its content."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

import trio

from fuse_tier.fs.base import Shared
from fuse_tier.fs.handles import OpenFile

_SOON_BYTES: Final = 16 << 20  # so much is copied or allocated in a moment; more in a thread
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE (linux/falloc.h); all others take nothing, or no more than is there
_MOST_BYTES: Final = 1 << 30  # in one step, so that an end does not wait long

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class SpaceOperations(Shared):
    """The operations of FUSE by these names; each raises OSError, EOPNOTSUPP for what a tmpfs cannot do."""

    async def fallocate(self, handle: int, mode: int, offset: int, size: int) -> None:
        """Allocates or frees room, in all ways that a tmpfs has."""
        file = self._written(handle)
        if not mode & ~_KEEP_SIZE:
            self._demand(file.fd, offset + size)
        if size > _SOON_BYTES:
            await trio.to_thread.run_sync(_allocate, file.fd, mode, offset, size)
        else:
            _allocate(file.fd, mode, offset, size)
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
        if size > _SOON_BYTES:
            return await trio.to_thread.run_sync(os.copy_file_range, read.fd, written.fd, size, start, to)
        return os.copy_file_range(read.fd, written.fd, size, start, to)

    def _demand(self, fd: int, end: int) -> None:
        if self._share.limit and not self._share.admits(fd, end):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _written(self, handle: int) -> OpenFile:
        file = self._handles.files[handle]
        if file.writing is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        file.writing.synced = False
        return file


def _allocate(fd: int, mode: int, offset: int, size: int) -> None:
    if _fallocate(fd, mode, offset, size) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
