"""Files of which a part cannot be read: EIO, as memory or a disk gives it that has lost what it held.

Modules import the fixture. Run as ``python unreadable.py MOUNTPOINT`` this is the filesystem that has them: it prints
a line when it is mounted. A file's name says how many bytes it has, and from which on they cannot be read.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pyfuse3
import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout

_BYTE = b"1"  # not zeros, which is what is sent in place of what is not there


class Unreadable:
    """The files of one mount."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint

    @staticmethod
    def content(size: int) -> bytes:
        """What a file of this size holds, or held."""
        return _BYTE * size

    def blob(self, size: int) -> Blob:
        """The same, by name."""
        return hash_bytes(self.content(size))

    def lose(self, layout: Layout, size: int, monkeypatch: pytest.MonkeyPatch) -> Blob:
        """A blob of a RAM tier that has been stored cannot be read any more where it lies. What replaces it can."""
        blob, opens = self.blob(size), RamContent.open
        lost = os.lstat(layout.blob(blob)).st_ino

        def open_it(content: RamContent, wanted: Blob) -> int:
            fd = opens(content, wanted)
            if os.fstat(fd).st_ino != lost:
                return fd
            os.close(fd)
            return self.open(size)

        monkeypatch.setattr(RamContent, "open", open_it)
        return blob

    def open(self, size: int, readable: int = 0) -> int:
        """A descriptor of such a file, of which the first ``readable`` bytes can be read: whole pages."""
        return os.open(f"{self._mountpoint}/{size}.{readable}", os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def unreadable() -> Iterator[Unreadable]:
    """Its users are marked ``fuse``."""
    with (
        tempfile.TemporaryDirectory(prefix="fuse-tier-unreadable-") as mountpoint,
        subprocess.Popen([sys.executable, __file__, mountpoint], stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"mounted\n"
            yield Unreadable(mountpoint)
        finally:
            process.kill()
            subprocess.run(["umount", "--lazy", mountpoint], check=True)


class _Filesystem(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self._files: list[tuple[int, int]] = []  # size, and how much can be read; by inode

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755
        if inode != pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFREG | 0o644
            entry.st_size = self._files[inode - pyfuse3.ROOT_INODE - 1][0]
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        size, _, readable = name.partition(b".")
        self._files.append((int(size), int(readable)))
        return await self.getattr(pyfuse3.ROOT_INODE + len(self._files))

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        whole, readable = self._files[handle - pyfuse3.ROOT_INODE - 1]
        if min(offset + size, whole) > readable:  # of what is read ahead the kernel asks again, page by page
            raise pyfuse3.FUSEError(errno.EIO)
        return _BYTE * min(size, whole - offset)


def _main(mountpoint: str) -> None:
    pyfuse3.init(_Filesystem(), mountpoint, {"fsname=unreadable", "subtype=unreadable"})
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    _main(sys.argv[1])
