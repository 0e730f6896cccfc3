"""Content of a restored tree's files on its way: each lands in the very file that the job sees already.

A file of ``remote/`` (remote.py) whose marker says ``coming`` has its name, size and times, and a restore is bringing
the rest. What has landed and is what it should be becomes a blob of the tier at once, by a link, so that nothing is
hashed or copied again. Several files of one content are filled with what came once. All of it blocks, in threads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress

from fuse_tier import failpoints
from fuse_tier.blobs import Blob, ResumableIncoming
from fuse_tier.errors import Damaged, NotFound
from fuse_tier.hashing import RunningHash
from fuse_tier.ram.content import room_in
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins, link_to_blob
from fuse_tier.ram.remote import COMING, taken, unmark
from fuse_tier.ram.spares import Spares

_CHUNK = 64 << 20


def expect(volume: VolumeLayout, blob: Blob, path: str) -> None:
    """Marks a file, which has its size, as one whose content is coming."""
    inode = os.lstat(path).st_ino
    os.link(path, os.path.join(volume.remote, f"{inode}.file"), follow_symlinks=False)
    os.symlink(os.path.join(COMING, blob.name), os.path.join(volume.remote, str(inode)))


def coming_files(volume: VolumeLayout) -> dict[Blob, list[int]]:
    """The content that is coming, and the inodes of its files."""
    found: dict[Blob, list[int]] = {}
    for name in os.listdir(volume.remote):
        if name.isdigit() and (blob := coming_blob(volume, int(name))) is not None:
            found.setdefault(blob, []).append(int(name))
    return found


def coming_blob(volume: VolumeLayout, inode: int) -> Blob | None:
    """The content that is coming of one file; None when it is here, or is not coming."""
    try:
        place, name = os.path.split(os.readlink(os.path.join(volume.remote, str(inode))))
    except FileNotFoundError:
        return None
    return Blob.parse(name) if place == COMING else None


def lose(layout: Layout, volume: VolumeLayout, blob: Blob) -> list[int]:
    """No place has a content that is coming: its files answer EIO from now on. Gives their inodes."""
    inodes = coming_files(volume).get(blob, [])
    for inode in inodes:
        with suppress(FileNotFoundError), taken(volume, inode):
            link_to_blob(layout, layout.blob(blob), os.path.join(volume.remote, str(inode)))
    return inodes


class Arrivals:
    """A sink for content that is coming. ``skipped`` may grow while it is in use: others bring that."""

    def __init__(
        self,
        layout: Layout,
        volume: VolumeLayout,
        pins: Pins,
        waiting: Mapping[Blob, list[int]],
        place: str,
        skipped: Collection[Blob] = (),
    ) -> None:
        self._layout = layout
        self._volume = volume
        self._pins = pins
        self._waiting = waiting
        self._place = place
        self._skipped = skipped
        self._spares = Spares(layout)
        self._landing: set[Blob] = set()

    def is_landing(self, blob: Blob) -> bool:
        """Whether it is on its way into a file just now, which is locked for as long. Any thread may ask."""
        return blob in self._landing

    def create(self, blob: Blob) -> ResumableIncoming:
        """Makes room. Raises TierFull, NotFound (it is here, or not wanted any more)."""
        if blob in self._skipped:
            raise NotFound(f"{blob} is brought by another")
        for inode in self._waiting.get(blob, ()):
            with suppress(FileNotFoundError):
                return _Arriving(self, blob, inode)
        raise NotFound(f"no file of {self._volume.root} waits for {blob} any more")

    def finish(self, blob: Blob, inode: int, fd: int) -> None:
        """What has arrived becomes a blob, and other files of the same content get it, too."""
        kept, pin = self._layout.blob(blob), self._pins.path(inode)
        with self._pins.locked():
            link_to_blob(self._layout, kept, pin, is_new=True)  # before the blob: see pins.py
            try:
                os.link(os.path.join(self._volume.remote, f"{inode}.file"), kept)
            except FileExistsError:  # the tier has that content as another inode
                os.unlink(pin)
        failpoints.reached("restore.arrived")
        unmark(self._volume, inode)
        for other in self._waiting[blob]:
            with suppress(FileNotFoundError):
                self._copy(blob, fd, other)

    def _copy(self, blob: Blob, source: int, inode: int) -> None:
        with taken(self._volume, inode) as target:
            before = os.fstat(target)
            self.room_for(target, blob)
            done = 0
            while done < blob.size:
                done += os.copy_file_range(source, target, min(_CHUNK, blob.size - done), done, done)
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
            unmark(self._volume, inode)

    def room_for(self, fd: int, blob: Blob) -> None:
        """Allocates. Raises TierFull."""
        with room_in(self._place):
            if blob.size:
                self._spares.release(blob.size)
                os.posix_fallocate(fd, 0, blob.size)

    def held(self, blob: Blob, inode: int) -> tuple[int, ExitStack]:
        """The file, which nobody else changes until the stack is closed. Raises FileNotFoundError."""
        with ExitStack() as stack:
            fd = stack.enter_context(taken(self._volume, inode))
            stack.callback(self._landing.discard, blob)
            self._landing.add(blob)
            return fd, stack.pop_all()


class _Arriving(ResumableIncoming):
    def __init__(self, arrivals: Arrivals, blob: Blob, inode: int) -> None:
        self._arrivals = arrivals
        self._blob = blob
        self._inode = inode
        self.fd, self._held = arrivals.held(blob, inode)
        self._before = os.fstat(self.fd)
        self._hash = self._from_start()
        try:
            arrivals.room_for(self.fd, blob)
        except BaseException:
            self.discard()
            raise

    @property
    def offset(self) -> int:
        return self._hash.done

    def restart(self) -> None:
        self._hash.close()
        self._hash = self._from_start()

    def _from_start(self) -> RunningHash:
        # Mapped: whoever cuts a marked file off takes its lock first (remote.py), and we hold that.
        return RunningHash(self.fd, self._blob.size, mapped=True)

    def landed(self, offset: int) -> None:
        self._hash.advance(offset)

    def accept(self) -> None:
        self._hash.advance(self._blob.size)
        if self._hash.digest() != self._blob.digest:
            self.discard()
            raise Damaged(f"something else arrived in place of {self._blob}: ask another source")
        self._hash.close()
        try:
            with self._held:
                os.utime(self.fd, ns=(self._before.st_atime_ns, self._before.st_mtime_ns))
                self._arrivals.finish(self._blob, self._inode, self.fd)
        except FileNotFoundError:
            raise NotFound(f"nothing waits for {self._blob} any more: the volume was made anew") from None

    def keep(self) -> None:
        self.discard()

    def discard(self) -> None:
        self._hash.close()
        with self._held:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self._blob.size)
            os.utime(self.fd, ns=(self._before.st_atime_ns, self._before.st_mtime_ns))
