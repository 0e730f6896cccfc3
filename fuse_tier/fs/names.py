"""Operations on names: looking up, making, removing, renaming and linking.

Each passes the gate and makes its change without an await in between (changes.py), and so is atomic for the worker.

The kernel asks to make a name only where it knows that there is none, and to remove one that it knows to be there,
and lets nobody else at that name meanwhile. So when a request that is sent again, because a daemon died before it
answered, finds the name made or removed, then by that daemon, for this request.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fuse_tier.fs.base import Shared
from fuse_tier.fs.nodes import ROOT
from fuse_tier.fs.requests import Entry, Request
from fuse_tier.ram.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, rename_with_flags


class NameOperations(Shared):
    """The operations of FUSE by these names; each raises OSError."""

    def lookup(self, parent_inode: int, name: bytes, request: Request) -> Entry:
        """Finds a name."""
        if parent_inode == ROOT:
            self._arranging.asked(name)
        found = os.stat(name, dir_fd=self._nodes.directory(parent_inode), follow_symlinks=False)
        return self._known(found, parent_inode, name)

    def forget(self, inodes: Iterable[tuple[int, int]]) -> None:
        """The kernel no longer knows inodes, each with how often it had been told of it."""
        self._nodes.forget(inodes)

    def readlink(self, inode: int, request: Request) -> bytes:
        """The target of a symlink."""
        place = self._nodes.name(inode)
        if place is None:
            with self._nodes.path(inode) as path:
                # Of the descriptor itself: its path would be the link's own path.
                return os.readlink(b"", dir_fd=int(path.rpartition(b"/")[2]))
        return os.readlink(place[1], dir_fd=place[0])

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, request: Request) -> Entry:
        """Makes a file, a FIFO, a socket or a device node (the kernel has asked for CAP_MKNOD).

        The mount is made so that devices cannot be opened; like sockets, they are not part of a snapshot.
        """
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(parent_inode)
        with _made_before(request):
            os.mknod(name, mode, rdev, dir_fd=directory)
        return self._made(directory, parent_inode, name, mode, request)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, request: Request) -> Entry:
        """Makes a directory."""
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(parent_inode)
        with _made_before(request):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return self._made(directory, parent_inode, name, mode, request)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, request: Request) -> Entry:
        """Makes a symlink, wherever it leads: only the job follows it."""
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(parent_inode)
        with _made_before(request):
            os.symlink(target, name, dir_fd=directory)
        return self._made(directory, parent_inode, name, stat.S_IFLNK, request)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, request: Request) -> Entry:
        """Gives a file a further name."""
        if self._changes.held:
            await self._changes.passed()
        directory = self._nodes.directory(new_parent_inode)
        place = self._nodes.name(inode)
        with _made_before(request):
            if place is None:
                with self._nodes.path(inode) as path:
                    os.link(path, new_name, dst_dir_fd=directory, follow_symlinks=True)
            else:
                os.link(place[1], new_name, src_dir_fd=place[0], dst_dir_fd=directory, follow_symlinks=False)
        self._changes.record()
        return self._known(os.stat(new_name, dir_fd=directory, follow_symlinks=False), new_parent_inode, new_name)

    async def unlink(self, parent_inode: int, name: bytes, request: Request) -> None:
        """Removes a name of anything but a directory."""
        if self._changes.held:
            await self._changes.passed()
        with _gone_before(request), self._nodes.removing(parent_inode, name) as directory:
            os.unlink(name, dir_fd=directory)
        self._changes.record()

    async def rmdir(self, parent_inode: int, name: bytes, request: Request) -> None:
        """Removes an empty directory."""
        if self._changes.held:
            await self._changes.passed()
        with _gone_before(request), self._nodes.removing(parent_inode, name) as directory:
            os.rmdir(name, dir_fd=directory)
        self._changes.record()

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        request: Request,
    ) -> None:
        """Renames, replaces, exchanges two names, or leaves a whiteout (a device 0/0) in the place of the old one."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._changes.held:
            await self._changes.passed()
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        exchanges = bool(flags & RENAME_EXCHANGE)
        if exchanges and not self._begin_exchange(old, request):
            return
        if flags & RENAME_WHITEOUT and request.resent and self._is_whiteout(old):
            return  # done before
        with _gone_before(request), self._nodes.renaming(old, new, exchange=exchanges) as (directory, new_directory):
            if flags:
                rename_with_flags(directory, name_old, new_directory, name_new, flags)
                if flags & RENAME_WHITEOUT:
                    self._give_away(directory, name_old, stat.S_IFCHR, request)
            else:
                os.rename(name_old, name_new, src_dir_fd=directory, dst_dir_fd=new_directory)
        self._changes.record()

    def _is_whiteout(self, place: tuple[int, bytes]) -> bool:
        parent, name = place
        found = os.stat(name, dir_fd=self._nodes.directory(parent), follow_symlinks=False)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0

    def _begin_exchange(self, old: tuple[int, bytes], request: Request) -> bool:
        """Leaves word of what is to be exchanged; False if that was done before.

        Done twice, an exchange would be undone; and only the inodes tell whether it has been.
        """
        parent, name = old
        inode = os.stat(name, dir_fd=self._nodes.directory(parent), follow_symlinks=False).st_ino
        if (word := self._handles.word_of(request)) is not None:
            return word.inode == inode
        self._handles.leave_word(request, inode)
        return True

    def _made(self, directory: int, parent: int, name: bytes, mode: int, request: Request) -> Entry:
        found = self._give_away(directory, name, mode, request)
        self._changes.record()
        return self._known(found, parent, name)

    def _known(self, found: os.stat_result, parent: int, name: bytes) -> Entry:
        entry = self._entry_at(found, parent, name)
        self._nodes.seen(found, parent, name)
        return entry


@contextmanager
def _made_before(request: Request) -> Iterator[None]:
    """Around what makes a name."""
    try:
        yield
    except FileExistsError:
        if not request.resent:
            raise


@contextmanager
def _gone_before(request: Request) -> Iterator[None]:
    """Around what removes a name, of which a rename is one."""
    try:
        yield
    except FileNotFoundError:
        if not request.resent:
            raise
