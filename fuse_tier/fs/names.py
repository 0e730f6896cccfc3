"""Operations on names: looking up, making, removing, renaming and linking.

Each passes the gate and makes its change without an await in between (changes.py), and so is atomic for the worker.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

import pyfuse3

from fuse_tier.fs.base import Shared
from fuse_tier.fs.guard import guarded
from fuse_tier.fs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_with_flags

_MADE_BY_MKNOD = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)


class NameOperations(Shared):
    """The operations that pyfuse3 names so; each raises FUSEError."""

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Finds a name."""
        found = os.stat(name, dir_fd=self._nodes.directory(parent_inode), follow_symlinks=False)
        return self._known(found, parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel no longer knows inodes. Not guarded: there is nobody to tell."""
        self._nodes.forget(inode_list)

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """The target of a symlink."""
        place = self._nodes.name(inode)
        if place is None:
            with self._nodes.path(inode) as path:
                # Of the descriptor itself: its path would be the link's own path.
                return os.readlink(b"", dir_fd=int(path.rpartition(b"/")[2]))
        return os.readlink(place[1], dir_fd=place[0])

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Makes a file, a FIFO or a socket; devices are refused, because no snapshot can hold them."""
        if stat.S_IFMT(mode) not in _MADE_BY_MKNOD:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(parent_inode)
        os.mknod(name, mode, dir_fd=directory)
        return self._made(directory, parent_inode, name, mode, ctx)

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Makes a directory."""
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(parent_inode)
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return self._made(directory, parent_inode, name, mode, ctx)

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Makes a symlink, wherever it leads: only the job follows it."""
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(parent_inode)
        os.symlink(target, name, dir_fd=directory)
        return self._made(directory, parent_inode, name, stat.S_IFLNK, ctx)

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Gives a file a further name."""
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(new_parent_inode)
        place = self._nodes.name(inode)
        if place is None:
            with self._nodes.path(inode) as path:
                os.link(path, new_name, dst_dir_fd=directory, follow_symlinks=True)
        else:
            os.link(place[1], new_name, src_dir_fd=place[0], dst_dir_fd=directory, follow_symlinks=False)
        self._changes.record()
        return self._known(os.stat(new_name, dir_fd=directory, follow_symlinks=False), new_parent_inode, new_name)

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Removes a name of anything but a directory."""
        if self._changes.held:
            await self._changes.passed()
        with self._nodes.removing(parent_inode, name) as directory:
            os.unlink(name, dir_fd=directory)
        self._changes.record()

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Removes an empty directory."""
        if self._changes.held:
            await self._changes.passed()
        with self._nodes.removing(parent_inode, name) as directory:
            os.rmdir(name, dir_fd=directory)
        self._changes.record()

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Renames, replaces, or exchanges two names."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._changes.held:
            await self._changes.passed()
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        with self._nodes.renaming(old, new, exchange=bool(flags & RENAME_EXCHANGE)) as (directory, new_directory):
            if flags:
                rename_with_flags(directory, name_old, new_directory, name_new, flags)
            else:
                os.rename(name_old, name_new, src_dir_fd=directory, dst_dir_fd=new_directory)
        self._changes.record()

    def _made(
        self, directory: int, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        found = self._give_away(directory, name, mode, ctx)
        self._changes.record()
        return self._known(found, parent, name)

    def _known(self, found: os.stat_result, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        entry = self._entry(found)
        self._nodes.seen(found, parent, name)
        return entry
