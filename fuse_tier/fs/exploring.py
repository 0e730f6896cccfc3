"""Learning the names of a whole tree: what a daemon does once, after it has taken over from another.

Blocks, so that the tree stays as it is meanwhile: nobody else changes it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

Saw = Callable[[int, int, bytes], None]
"""Is told of each name: the inode, the inode of the directory that it is in, and the last part."""


def explore(root: int, root_inode: int, saw: Saw) -> None:
    """Reads the tree below the directory ``root``, and calls it ``root_inode``. Raises OSError."""
    started = time.monotonic()
    collects = gc.isenabled()
    gc.disable()  # it would look at all that is learned again and again, and find nothing
    count = 0
    # One descriptor for each directory on the way down, and the names of those that are still to be read in it.
    way: list[tuple[int, list[tuple[bytes, int]]]] = []
    try:
        way.append(_open(root, b".", root_inode))
        count += _read(*way[-1], root_inode, saw)
        while way:
            fd, below = way[-1]
            if below:
                name, inode = below.pop()
                way.append(_open(fd, name, inode))
                count += _read(*way[-1], inode, saw)
            else:
                os.close(way.pop()[0])
    finally:
        if collects:
            gc.enable()
        for fd, _ in way:
            os.close(fd)
    log.info("tree.explored", names=count, seconds=round(time.monotonic() - started, 3))


def _open(parent: int, name: bytes, inode: int) -> tuple[int, list[tuple[bytes, int]]]:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent), []


def _read(fd: int, below: list[tuple[bytes, int]], inode: int, saw: Saw) -> int:
    """Tells of the names in one directory, and notes the directories among them; gives how many there are."""
    count = 0
    with os.scandir(b"/proc/self/fd/%d" % fd) as entries:
        for entry in entries:
            count += 1
            number, name = entry.inode(), entry.name
            saw(number, inode, name)
            if entry.is_dir(follow_symlinks=False):
                below.append((name, number))
    return count
