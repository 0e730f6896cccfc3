"""``python -m fuse_tier.bench.loopback SOURCE MOUNTPOINT``: what one gets from pyfuse3 in an afternoon, written well.

A directory shown at another place, by the library that Python's FUSE filesystems are made with: what ours is
compared with. It answers what the benchmarks ask for, in as few steps as pyfuse3 allows: the kernel may keep names
and attributes for as long as ours, a handle is the descriptor itself, nothing is asked for twice. It prints
``ready`` when it is mounted, and ends when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable
from typing import Any, Final

import pyfuse3
import trio

_CACHED_SECONDS: Final = 300


class Loopback(pyfuse3.Operations):
    """The operations, by inode numbers that are those of the source."""

    enable_writeback_cache = False

    def __init__(self, source: str) -> None:
        super().__init__()
        self._paths = {pyfuse3.ROOT_INODE: os.fsencode(source)}
        self._lookups: dict[int, int] = {}

    def _seen(self, path: bytes, found: os.stat_result) -> Any:
        inode = found.st_ino
        self._paths[inode] = path
        self._lookups[inode] = self._lookups.get(inode, 0) + 1
        return _attributes(found, inode)

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        """Finds a name."""
        path = self._paths[parent] + b"/" + name
        return self._seen(path, _lstat(path))

    async def forget(self, inodes: Iterable[tuple[int, int]]) -> None:
        """The kernel no longer knows inodes."""
        for inode, count in inodes:
            left = self._lookups[inode] - count
            if left:
                self._lookups[inode] = left
            else:
                del self._lookups[inode], self._paths[inode]

    async def getattr(self, inode: int, ctx: Any) -> Any:
        """The attributes of anything."""
        return _attributes(_lstat(self._paths[inode]), inode)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        """Makes a directory."""
        path = self._paths[parent] + b"/" + name
        os.mkdir(path, stat.S_IMODE(mode))
        return self._seen(path, _lstat(path))

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        """Makes a file and opens it."""
        path = self._paths[parent] + b"/" + name
        fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, stat.S_IMODE(mode))
        return pyfuse3.FileInfo(fh=fd), self._seen(path, os.fstat(fd))

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        """Opens a file."""
        return pyfuse3.FileInfo(fh=os.open(self._paths[inode], flags | os.O_CLOEXEC))

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Reads."""
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Writes."""
        return os.pwrite(fh, buf, off)

    async def release(self, fh: int) -> None:
        """The last close."""
        os.close(fh)

    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        """Removes a file."""
        os.unlink(self._paths[parent] + b"/" + name)

    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        """Removes a directory."""
        os.rmdir(self._paths[parent] + b"/" + name)

    async def opendir(self, inode: int, ctx: Any) -> int:
        """Opens a directory."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Lists names, with their attributes."""
        directory = self._paths[fh]
        for number, name in enumerate(sorted(os.listdir(directory))[start_id:], start_id + 1):
            path = directory + b"/" + name
            found = _lstat(path)
            if not pyfuse3.readdir_reply(token, name, _attributes(found, found.st_ino), number):
                return
            self._seen(path, found)


def _lstat(path: bytes) -> os.stat_result:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        raise pyfuse3.FUSEError(errno.ENOENT) from None


def _attributes(found: os.stat_result, inode: int) -> Any:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = found.st_mode
    entry.st_nlink = found.st_nlink
    entry.st_uid = found.st_uid
    entry.st_gid = found.st_gid
    entry.st_size = found.st_size
    entry.st_blksize = found.st_blksize
    entry.st_blocks = found.st_blocks
    entry.st_atime_ns = found.st_atime_ns
    entry.st_mtime_ns = found.st_mtime_ns
    entry.st_ctime_ns = found.st_ctime_ns
    entry.entry_timeout = entry.attr_timeout = _CACHED_SECONDS
    return entry


def main(source: str, mountpoint: str) -> None:
    """Serves until it is unmounted."""
    options = set(pyfuse3.default_options) | {"fsname=fuse-tier-bench", "subtype=loopback"}
    pyfuse3.init(Loopback(source), mountpoint, options)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
