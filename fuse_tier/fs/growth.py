"""Room ahead of files that grow, and whose size nobody knew: a first checkpoint, a name like no other.

Where the kernel writes by itself, a file of the RAM tier grows by as much as the job writes at a time, in pages of
that size at most. Pages that are there before the job comes to them are huge ones, which a mapping of the file reads
in fewer faults, and they are charged to us and not to the job. So files that are open for writing are looked at,
often while they grow, ever more seldom while they do not, and get room beyond their end.

It is a guess, as all of reserve.py: nothing is taken where room is scarce, and what was too much is given back when
the last writer closes. Nobody waits for it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from fuse_tier.fs.handles import OpenFile
from fuse_tier.ram.room import NO_ROOM, allocate, room_of

log = structlog.get_logger(__name__)

_HUGE_BYTES: Final = 2 << 20  # of a huge page on x86 and arm64 with small pages of 4 KiB
_GROWN_BYTES: Final = 4 << 20  # less is not worth a call
_MOST_BYTES: Final = 256 << 20  # ahead of one file: what is written in a few looks
_SPARE_PART: Final = 8  # of the free room at most this part
_FIRST_PAUSE_SECONDS: Final = 0.004
_PAUSE_SECONDS: Final = 0.002  # while it grows
_LONGEST_PAUSE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Extent:
    """How long a file is, and how many bytes it takes."""

    size: int
    allocated: int


def room_ahead(grown: int, now: Extent, free: int) -> int:
    """The bytes to allocate beyond the end of a file that has grown by so many since it got room the last time.

    0 for one that has enough, has holes, or that somebody else has given its size.
    """
    if grown < _GROWN_BYTES or now.allocated < now.size:
        return 0
    ahead = min(2 * grown, _MOST_BYTES, free // _SPARE_PART)
    ahead -= ahead % _HUGE_BYTES
    return ahead if now.allocated < now.size + ahead // 2 else 0


class _Watched:
    __slots__ = ("due", "file", "pause", "size")

    def __init__(self, file: OpenFile, now: float) -> None:
        self.file = file
        self.size = os.fstat(file.fd).st_size  # when it got room the last time, or was opened
        self.pause = _FIRST_PAUSE_SECONDS
        self.due = now + self.pause


class Growth:
    """The files of one mount that are open for writing. ``run`` is its task."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}  # by inode
        self._pause = trio.CancelScope()

    def opened(self, file: OpenFile) -> None:
        """A writer has come: ``file`` is its handle."""
        if file.inode not in self._watched:
            watched = self._watched[file.inode] = _Watched(file, trio.current_time())
            self._pause.deadline = min(self._pause.deadline, watched.due)

    def closing(self, file: OpenFile) -> None:
        """A handle is about to be closed. What other writers the file has are not looked after."""
        watched = self._watched.get(file.inode)
        if watched is not None and watched.file is file:
            del self._watched[file.inode]

    async def run(self) -> None:
        """Until cancelled. Wakes up only while a file is open for writing."""
        while True:
            with self._pause:
                await trio.sleep_forever()
            now = trio.current_time()
            for watched in self._watched.values():
                if watched.due <= now:
                    self._look(watched)
                    watched.due = now + watched.pause
            due = min((watched.due for watched in self._watched.values()), default=float("inf"))
            self._pause = trio.CancelScope(deadline=due)

    def _look(self, watched: _Watched) -> None:
        found = os.fstat(watched.file.fd)
        now = Extent(found.st_size, found.st_blocks * 512)
        grown = now.size - watched.size
        if grown < _GROWN_BYTES:
            watched.size = min(watched.size, now.size)
            watched.pause = min(2 * watched.pause, _LONGEST_PAUSE_SECONDS)
            return
        watched.size, watched.pause = now.size, _PAUSE_SECONDS
        ahead = room_ahead(grown, now, room_of(watched.file.fd).free)
        if ahead:
            self._give(watched.file, now, ahead)

    def _give(self, file: OpenFile, now: Extent, ahead: int) -> None:
        start = now.size - now.size % _HUGE_BYTES
        try:
            allocate(file.fd, start, now.size - start + ahead)
        except OSError as error:
            if error.errno not in (*NO_ROOM, errno.EINTR):
                log.info("room.not_ahead", bytes=ahead, reason=str(error))
            return
        if file.writing is not None:  # they are ours, and not what its writers took
            file.writing.allocated += max(0, os.fstat(file.fd).st_blocks * 512 - now.allocated)
