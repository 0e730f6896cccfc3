"""How much room a RAM tier has, and the small part of it that only small files get when all else is full.

That part is a file of allocated pages, ``reserve``. What it takes is missing in everybody's count of free room, so
it holds against writers whom nobody of us sees (the kernel writes for them, or a peer's bytes land): a check before
each create would not. Whoever has to write a few pages when the tier is full, a job's marker or our manifest, takes
them from it with ``spend``, and whoever sees room again puts them back with ``refill``: the worker. In between
another writer may be faster; then ``spend`` is called once more, a few times at most.

Jobs get half of it. The other half is for what we write about files: without a new manifest, content that a job has
removed would stay for the sake of the one before, and the tier would be full for ever.

Everything here blocks, for microseconds; any thread and any process may call it, at any time.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from fuse_tier.ram.layout import Layout

T = TypeVar("T")

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_LARGEST_RESERVE_BYTES: Final = 16 << 20
_RESERVE_PART: Final = 50  # or this part of a small tier
_STEP_BYTES: Final = 256 << 10  # spent at a time at least for a job: room for many small files
_PAGE_BYTES: Final = 4096
_TRIES: Final = 4
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of a tmpfs."""

    capacity: int
    free: int

    @property
    def used(self) -> int:
        """What is taken, the reserve included."""
        return self.capacity - self.free


def room_of(root: str | int) -> Room:
    """Of the tmpfs at a path, or behind a descriptor."""
    found = os.statvfs(root)
    return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def allocate(fd: int, start: int, size: int) -> None:
    """fallocate(2) with the file's size as it is: pages are ours, and there, before others write. Raises OSError."""
    if _fallocate(fd, _KEEP_SIZE, start, size):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def trim(fd: int, found: os.stat_result | None = None) -> bool:
    """Frees what is allocated beyond a file's end; whether there was anything. The file has no writer.

    ``found`` is its status, for callers who have it.
    """
    found = os.fstat(fd) if found is None else found
    if found.st_blocks * 512 <= -(-found.st_size // _PAGE_BYTES) * _PAGE_BYTES:
        return False
    os.ftruncate(fd, found.st_size)
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))  # a job may have set them
    return True


def _whole(room: Room) -> int:
    return min(_LARGEST_RESERVE_BYTES, room.capacity // _RESERVE_PART)


def _ours(room: Room) -> int:
    return _whole(room) // 2 // _PAGE_BYTES * _PAGE_BYTES


class Reserve:
    """The reserve of one RAM tier."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.reserve
        self._root = layout.root

    def spend(self, size: int, *, for_job: bool) -> int:
        """Frees so many bytes of it, or what it has; gives how many."""
        with self._locked() as fd:
            kept = os.fstat(fd).st_size
            # For us no more than is written at once: in between, it is anybody's.
            wanted = max(size, _STEP_BYTES) if for_job else -(-size // _PAGE_BYTES) * _PAGE_BYTES + _PAGE_BYTES
            freed = max(0, min(kept - (_ours(room_of(self._root)) if for_job else 0), wanted))
            if freed:
                os.ftruncate(fd, kept - freed)
            return freed

    def demand(self) -> None:
        """Raises OSError (ENOSPC) when there is nothing left for jobs: a new volume would live on what is ours."""
        with self._locked() as fd:
            room = room_of(self._root)
            if room.free < _STEP_BYTES and os.fstat(fd).st_size <= _ours(room):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._root)

    def refill(self) -> int:
        """Makes it whole again if there is room enough beside it, or our half; gives its size."""
        room = room_of(self._root)
        with self._locked() as fd:
            kept = os.fstat(fd).st_size
            # Never the last of the room: else it would be taken from who was just let have it.
            sizes = _whole(room), _ours(room)
            possible = [size for size in sizes if kept < size and room.free >= 2 * (size - kept)]
            if not possible:
                return kept
            try:
                os.posix_fallocate(fd, kept, possible[0] - kept)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                os.ftruncate(fd, kept)
                return kept
            return possible[0]

    def write(self, attempt: Callable[[], T], size: int, *, for_job: bool = False) -> T:
        """What ``attempt`` gives, which writes about so many bytes and leaves nothing when there is no room.

        Raises OSError (ENOSPC) when there is none even here.
        """
        for _ in range(_TRIES):
            try:
                return attempt()
            except OSError as error:
                if error.errno not in NO_ROOM or not self.spend(size, for_job=for_job):
                    raise
        return attempt()

    @contextmanager
    def _locked(self) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)
