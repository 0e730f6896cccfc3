"""Files whose content is not here: how it leaves, and how it comes back.

``remote/<inode>`` says which blob a file of the tree shall hold; ``remote/<inode>.file`` is that file. Whoever opens
it waits until the worker has fetched the content into that very inode. The target of the first is ``bucket/<blob>``
if we gave the content up because the bucket has it, and ``coming/<blob>`` if a restore is bringing it (arrival.py):
then snapshots name the file as if its content were here. It is a path into ``blobs/`` if a restore found no place
that had it intact, and then they leave the file out.

Content goes in an order in which a crash between any two steps loses nothing: the marker first, by the mount's
daemon, which knows that the file is not open; then the blob's name; then the content. It comes back in the reverse:
the marker goes last, after the content was hashed. All of it blocks, in threads.

Content is emptied, filled and dropped by different processes, and a job may be about to write the same file anew. So
each does it under a lock on the file itself (flock, of which the job sees nothing), and only if the marker is still
there then.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from fuse_tier.blobs import Blob, Incoming
from fuse_tier.errors import Damaged, NotFound
from fuse_tier.hashing import hash_descriptor
from fuse_tier.ram.content import room_in
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.use import is_used

COMING: Final = "coming"
_GIVEN_UP: Final = "bucket"


def remote_files(volume: VolumeLayout) -> dict[int, Blob | None]:
    """The inodes whose content is not here; the blob of those that the bucket has, or a restore is bringing."""
    found: dict[int, Blob | None] = {}
    for name in os.listdir(volume.remote):
        if name.isdigit():
            with suppress(FileNotFoundError):  # it comes back at this very moment
                blob, is_lost = marked(volume, int(name))
                found[int(name)] = None if is_lost else blob
    return found


def lost_files(volume: VolumeLayout) -> dict[Blob, list[int]]:
    """The content that no place had intact when it was asked for, and the inodes of its files."""
    found: dict[Blob, list[int]] = {}
    for inode, known in remote_files(volume).items():
        if known is None:
            with suppress(FileNotFoundError):
                blob, _ = marked(volume, inode)
                found.setdefault(blob, []).append(inode)
    return found


def marked(volume: VolumeLayout, inode: int) -> tuple[Blob, bool]:
    """What a file of ``remote/`` shall hold, and whether that is lost. Raises FileNotFoundError: it is none."""
    place, name = os.path.split(os.readlink(os.path.join(volume.remote, str(inode))))
    return Blob.parse(name), place not in (_GIVEN_UP, COMING)


@contextmanager
def taken(volume: VolumeLayout, inode: int) -> Iterator[int]:
    """A descriptor of a marked file, which nobody else changes until the block is left.

    Raises FileNotFoundError when it is not marked any more: its content is here, or the file was written anew.
    """
    marker = os.path.join(volume.remote, str(inode))
    fd = os.open(f"{marker}.file", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.lstat(marker)
        yield fd
    finally:
        os.close(fd)


def mark(layout: Layout, volume: VolumeLayout, inode: int, blob: Blob) -> bool:
    """Says that a file's content is in the bucket only. It must not be open through the mount.

    False if the blob is another inode, or somebody has it mapped or is reading it.
    """
    marker = os.path.join(volume.remote, str(inode))
    try:
        if is_used(layout.blob(blob)):
            return False
    except FileNotFoundError:
        return False
    with suppress(FileNotFoundError):
        os.unlink(f"{marker}.file")
    try:
        os.link(layout.blob(blob), f"{marker}.file", follow_symlinks=False)
    except FileNotFoundError:
        return False
    if os.lstat(f"{marker}.file").st_ino != inode:
        os.unlink(f"{marker}.file")
        return False
    temporary = f"{marker}.{secrets.token_hex(4)}"
    os.symlink(os.path.join(_GIVEN_UP, blob.name), temporary)
    os.rename(temporary, marker)
    return True


def unmark(volume: VolumeLayout, inode: int) -> None:
    """The content is here, or the file is gone."""
    for name in (str(inode), f"{inode}.file"):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(volume.remote, name))


def drop(volume: VolumeLayout, inode: int) -> None:
    """The content is not wanted any more: its file is about to be written anew. Waits for who is at it."""
    with suppress(FileNotFoundError), taken(volume, inode):
        unmark(volume, inode)


def give_up(layout: Layout, volume: VolumeLayout, pins: Pins, inode: int, blob: Blob) -> int:
    """Frees the content of a marked file; gives the bytes, 0 if it has been dropped since.

    No listed manifest names the blob any more.
    """
    with suppress(FileNotFoundError), taken(volume, inode) as fd, pins.locked():
        status = os.fstat(fd)
        kept = layout.blob(blob)
        with suppress(FileNotFoundError):
            if os.lstat(kept).st_ino == inode:
                os.unlink(kept)
        with suppress(FileNotFoundError):
            os.unlink(pins.path(inode))
        os.ftruncate(fd, 0)
        os.ftruncate(fd, status.st_size)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        return status.st_blocks * 512
    return 0


class Refill:
    """A sink for the content of one file of ``remote/``: it lands in that very inode."""

    def __init__(self, volume: VolumeLayout, inode: int, place: str) -> None:
        self._volume = volume
        self._inode = inode
        self._place = place

    def create(self, blob: Blob) -> Incoming:
        """Makes room. Raises TierFull, NotFound."""
        return _Returning(self._volume, self._inode, blob, self._place)


class _Returning:
    def __init__(self, volume: VolumeLayout, inode: int, blob: Blob, place: str) -> None:
        self._volume = volume
        self._inode = inode
        self._blob = blob
        self._place = place
        with ExitStack() as stack:
            try:
                self.fd = stack.enter_context(taken(volume, inode))
            except FileNotFoundError:
                raise NotFound(f"inode {inode} of {volume.root} was removed, or has its content") from None
            self._held = stack.pop_all()
        self._before = os.fstat(self.fd)
        try:
            with room_in(place):
                if blob.size:
                    os.posix_fallocate(self.fd, 0, blob.size)
        except BaseException:
            self.discard()
            raise

    def accept(self) -> None:
        try:
            found = hash_descriptor(self.fd)
            if found != self._blob:
                raise Damaged(f"{found} arrived in the {self._place} in place of {self._blob}: ask another source")
        except Damaged:
            self.discard()
            raise
        with self._held:
            os.utime(self.fd, ns=(self._before.st_atime_ns, self._before.st_mtime_ns))
            unmark(self._volume, self._inode)

    def discard(self) -> None:
        with self._held:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self._blob.size)
            os.utime(self.fd, ns=(self._before.st_atime_ns, self._before.st_mtime_ns))
