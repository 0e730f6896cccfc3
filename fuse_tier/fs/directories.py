"""Operations on directories: listing them, and syncing them.

A listing is taken when a directory is read from its start, and stays what it is until it is read from its start
again, so that every name that is there all the while comes exactly once, whatever else happens meanwhile.
"""

from __future__ import annotations

import os
from typing import Final

import pyfuse3
import trio

from fuse_tier.fs.attributes import wait_until_durable
from fuse_tier.fs.base import Shared
from fuse_tier.fs.guard import guarded
from fuse_tier.fs.handles import OpenDirectory
from fuse_tier.fs.nodes import ROOT

_LONG_BYTES: Final = 20 * 5_000  # a tmpfs counts 20 bytes an entry: from here on a listing takes milliseconds
_DOTS: Final = [b".", b".."]


class DirectoryOperations(Shared):
    """The operations that pyfuse3 names so; each raises FUSEError."""

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Opens a directory."""
        return self._handles.add_directory(OpenDirectory(inode))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Lists names, with their attributes, from a place in the listing on."""
        opened = self._handles.directories[fh]
        if start_id == 0:
            opened.names = await self._list(opened.inode)
        names, parent = opened.names, opened.inode
        for position in range(start_id, len(names)):
            name = names[position]
            # Looked up for each: the cache may have closed it during an await.
            directory = self._nodes.directory(parent)
            try:
                # Above the root is the volume's own directory, which is nobody's business.
                own = b"." if parent == ROOT and name == b".." else name
                found = os.stat(own, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not pyfuse3.readdir_reply(token, name, self._entry(found), position + 1):
                return
            if name not in _DOTS:  # the kernel takes no count of these
                self._nodes.seen(found, parent, name)

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

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Closes a directory."""
        del self._handles.directories[fh]

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Waits for as much as the node's configuration says."""
        self._changes.record()
        if self._fsync != "ram":
            await wait_until_durable(self._link, self._fsync)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """The RAM tier's room."""
        found = os.fstatvfs(self._nodes.root)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = found.f_bsize
        answer.f_frsize = found.f_frsize
        answer.f_blocks = found.f_blocks
        answer.f_bfree = found.f_bfree
        answer.f_bavail = found.f_bavail
        answer.f_files = found.f_files
        answer.f_ffree = found.f_ffree
        answer.f_favail = found.f_favail
        answer.f_namemax = found.f_namemax
        return answer
