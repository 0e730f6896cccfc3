"""A volume's share of the RAM tier: how much it has, and what is refused beyond that, so that others have theirs.

What a volume has is what its tree takes: counted by looking, at most every so often; what grows in between is added
where it is seen. A file that the kernel writes by itself is seen when it is closed: so a volume may exceed its share
by what it writes into files that were open before. From then on new files are written through the daemon, and hold
what fits, a few pages each at least, so that a job can still write its markers and move its pointers. Nothing that is
there goes.

Without a limit nothing is counted.
"""

from __future__ import annotations

import os
import time
from typing import Final

import trio

from fuse_tier.fs.changes import Changes

SMALL_BYTES: Final = 64 << 10  # what any file may have
_BLOCK_BYTES: Final = 512  # of st_blocks (stat(2))
_LOOK_SECONDS: Final = 0.5
_MOST_OF_THE_TIME: Final = 20  # looking takes no more than a part of this many


class Share:
    """Of one volume. ``limit`` is in bytes; 0 for none."""

    def __init__(self, limit: int, tree: str, changes: Changes) -> None:
        self.limit = limit
        self._tree = os.fsencode(tree)
        self._changes = changes
        self._used = 0
        self._looked = -1  # at which count of changes
        self._look_again = float("-inf")

    @property
    def is_used_up(self) -> bool:
        """As far as it is known."""
        return bool(self.limit) and self._used >= self.limit

    async def look(self) -> None:
        """Before a file is made: counts again, if that is due."""
        if self._looked != self._changes.counter and (self.is_used_up or time.monotonic() > self._look_again):
            await trio.to_thread.run_sync(self._look)

    def admits(self, fd: int, end: int) -> bool:
        """Whether a file may reach up to ``end``; what it takes more by that is counted. May block briefly."""
        if end <= SMALL_BYTES:
            return True
        more = end - os.fstat(fd).st_blocks * _BLOCK_BYTES
        if more <= 0:
            return True
        if self._used + more > self.limit and self._looked != self._changes.counter:
            self._look()  # something was removed, perhaps
        if self._used + more > self.limit:
            return False
        self._used += more
        return True

    def grew(self, size: int) -> None:
        """So much came of what nobody saw."""
        self._used += size

    def of(self, tier: os.statvfs_result, spare_bytes: int) -> os.statvfs_result:
        """What is told of room: the share's, and of that no more than the tier has, with what spares take of it."""
        changed = {name: getattr(tier, name) + spare_bytes // tier.f_frsize for name in ("f_bfree", "f_bavail")}
        if self.limit:
            left = max(0, self.limit - self._used) // tier.f_frsize
            changed = {name: min(blocks, left) for name, blocks in changed.items()}
            changed["f_blocks"] = min(tier.f_blocks, self.limit // tier.f_frsize)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag",
                 "f_namemax")  # fmt: skip
        return os.statvfs_result([changed.get(name, getattr(tier, name)) for name in names])

    def _look(self) -> None:
        counter, begun = self._changes.counter, time.monotonic()
        self._used = room_taken(self._tree)
        self._looked = counter
        now = time.monotonic()
        self._look_again = now + max(_LOOK_SECONDS, _MOST_OF_THE_TIME * (now - begun))


def room_taken(tree: bytes) -> int:
    """The bytes that the files of a tree take, each counted once. Blocks."""
    taken = 0
    seen: set[int] = set()
    pending = [tree]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1:
                        if found.st_ino in seen:
                            continue
                        seen.add(found.st_ino)
                    taken += found.st_blocks * _BLOCK_BYTES
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has gone, or become something else
    return taken
