"""Operations on directories: listing them, and syncing them.

A listing is taken when a directory is read from its start, and stays what it is until it is read from its start
again, so that every name that is there all the while comes exactly once, whatever else happens meanwhile.
"""

from __future__ import annotations

import os
from typing import Final

import trio

from fuse_tier.fs.attributes import wait_until_durable
from fuse_tier.fs.base import Shared
from fuse_tier.fs.nodes import ROOT
from fuse_tier.fs.requests import ListingReply, Opened, Request

_LONG_BYTES: Final = 20 * 5_000  # a tmpfs counts 20 bytes an entry: from here on a listing takes milliseconds
_DOTS: Final = [b".", b".."]


class DirectoryOperations(Shared):
    """The operations of FUSE by these names; each raises OSError."""

    def opendir(self, inode: int, request: Request) -> Opened:
        """Opens a directory."""
        return Opened(self._handles.add_directory(inode))

    async def readdir(self, inode: int, handle: int, start: int, reply: ListingReply) -> None:
        """Lists names, with their attributes, from a place in the listing on."""
        opened = self._handles.directory(handle, inode)
        if start == 0 or opened.names is None:
            opened.names = await self._list(inode)
            opened.kept = False
        names = opened.names
        for position in range(start, len(names)):
            name = names[position]
            # Looked up for each: the cache may have closed it during an await.
            directory = self._nodes.directory(inode)
            try:
                # Above the root is the volume's own directory, which is nobody's business.
                own = b"." if inode == ROOT and name == b".." else name
                found = os.stat(own, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            number = self._nodes.number(found.st_ino)
            if not reply.add(name, number, found.st_mode, self._entry_at(found, inode, name), position + 1):
                if not opened.kept:
                    self._handles.keep_listing(handle, opened)
                return
            if reply.with_attributes and name not in _DOTS:  # the kernel takes no count of these
                self._nodes.seen(found, inode, name)

    async def _list(self, inode: int) -> list[bytes]:
        path = b"/proc/self/fd/%d" % self._nodes.directory(inode)
        if os.stat(path).st_size < _LONG_BYTES:
            return _DOTS + os.listdir(path)
        # A descriptor of its own, which the cache cannot close while the thread reads.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _DOTS + await trio.to_thread.run_sync(os.listdir, b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)

    def releasedir(self, fh: int) -> None:
        """Closes a directory."""
        self._handles.remove_directory(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Waits for as much as the node's configuration says."""
        self._changes.record()
        if self._fsync != "ram":
            await wait_until_durable(self._link, self._fsync)

    def statfs(self, request: Request) -> os.statvfs_result:
        """The room of the volume's share, or of the whole RAM tier."""
        return self._share.of(os.fstatvfs(self._nodes.root), self._reservations.spare_bytes)
