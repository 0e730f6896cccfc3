"""What has to be done to a file's content before the job gets at it.

Content may be elsewhere (``remote/<inode>``: the worker fetches it before the file is opened), or shared with a
blob (``pins/<inode>``: it is copied away before the file is written). ram/layout.py and ram/pins.py say what stands
there and why. Whoever calls ``prepare_for_writing`` has counted the writer before: a pin that is made after that
the worker takes back, so a look without the volume's lock is enough to know that there is none.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, TierFull
from fuse_tier.fs.link import Link
from fuse_tier.fs.room import RoomAsker
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import drop
from fuse_tier.ram.room import NO_ROOM

log = structlog.get_logger(__name__)

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPIES_AT_ONCE: Final = 4


class Content:
    """The content of one volume's files."""

    def __init__(self, volume: VolumeLayout, pins: Pins, link: Link, room: RoomAsker) -> None:
        self._volume = volume
        self._pins = pins
        self._link = link
        self._room = room
        for directory in (volume.pins, volume.remote):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self._pins_fd = os.open(volume.pins, _DIRECTORY)
        self._remote_fd = os.open(volume.remote, _DIRECTORY)
        self._limiter = trio.CapacityLimiter(_COPIES_AT_ONCE)
        self._fetching: dict[int, trio.Lock] = {}

    def close(self) -> None:
        """Closes all descriptors."""
        os.close(self._pins_fd)
        os.close(self._remote_fd)

    def visible_links(self, found: os.stat_result) -> int:
        """How many names a regular file has for the job: ours do not count."""
        links = found.st_nlink
        if links > 1 and self._is_ours(found.st_ino):
            links -= 1
        if links > 1 and os.access(f"{found.st_ino}.file", os.F_OK, dir_fd=self._remote_fd, follow_symlinks=False):
            links -= 1
        return links

    def _is_ours(self, inode: int) -> bool:
        """``Pins.shares_inode`` in one system call: it is asked for each sealed file that is looked up."""
        try:
            return os.stat(str(inode), dir_fd=self._pins_fd).st_ino == inode
        except FileNotFoundError:
            return False

    def is_remote(self, inode: int) -> bool:
        """Whether the content has to be fetched before the file is opened."""
        return os.access(str(inode), os.F_OK, dir_fd=self._remote_fd, follow_symlinks=False)

    async def fetch(self, inode: int) -> None:
        """Has the content fetched, once for all who wait for it. Raises OSError: EIO, or ENOSPC."""
        lock = self._fetching.setdefault(inode, trio.Lock())
        try:
            async with lock:
                if self.is_remote(inode):
                    await self._materialize(inode)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._fetching.pop(inode, None)

    async def _materialize(self, inode: int) -> None:
        try:
            await self._link.call("materialize", Deadline.MATERIALIZE, inode=inode)
        except (FuseTierError, OSError) as error:
            log.exception("content.not_fetched", inode=inode)
            full = isinstance(error, TierFull) or getattr(error, "errno", None) == errno.ENOSPC
            raise OSError(
                errno.ENOSPC if full else errno.EIO, f"content of inode {inode} could not be fetched"
            ) from error

    async def prepare_for_writing(self, inode: int, *, keep: bool) -> None:
        """Makes it safe to write to a file; without ``keep`` its content is about to be dropped.

        Raises OSError (ENOSPC) when there is no room for the copy of what is kept for a snapshot; nothing has
        changed then.
        """
        if self.is_remote(inode):
            if keep:
                await self.fetch(inode)
            else:
                await trio.to_thread.run_sync(drop, self._volume, inode, limiter=self._limiter)
        if self._has_pin(inode):
            await self._detach(inode)

    async def _detach(self, inode: int) -> None:
        # In a thread even when it is small: the lock may be held for somebody's large one.
        try:
            await trio.to_thread.run_sync(self._pins.detach, inode, limiter=self._limiter)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # What is kept as it was may be elsewhere as well, and then needs no copy here.
            with suppress(FileNotFoundError):
                await self._room.obtain(os.stat(self._pins.path(inode)).st_size, inode)
            await trio.to_thread.run_sync(self._pins.detach, inode, limiter=self._limiter)

    def known_hash(self, inode: int) -> str | None:
        """The hash of a file's content in hex digits, if it is known and nobody is writing."""
        blob = self._pins.known_blob(inode)
        return blob.digest.hex() if blob else None

    def _has_pin(self, inode: int) -> bool:
        return os.access(str(inode), os.F_OK, dir_fd=self._pins_fd, follow_symlinks=False)
