"""Which file an inode number of the mount means: its name in the tree, for as long as the kernel knows it.

Inode numbers are those of the tmpfs, except the root, which is 1. A name is a parent and a last part, and every
system call is made relative to a descriptor of the parent, without following symlinks: so a directory can be
renamed without touching what is below it, paths may be as long as they like, and nothing leaves the tree.

What the kernel has looked up and not forgotten is here, and nothing else. The invariant: a known inode either has
a name here that leads to it, or, once its last known name is gone, a descriptor of its own (an orphan: a file that
is unlinked and still open, somebody's removed working directory).

Descriptors of directories are cached; one that ``directory`` gave is good until the next await.

What a daemon before this one had told the kernel is found by walking the tree, once, when the kernel first names an
inode that is not known here (exploring.py). Orphans outlive this process (orphans.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from fuse_tier.fs.exploring import explore
from fuse_tier.fs.known import Known, KnownNames, Name
from fuse_tier.fs.orphans import Orphans
from fuse_tier.mount.deposits import Deposit, Depositor

ROOT: Final = 1  # FUSE_ROOT_ID
_CACHED_DIRECTORIES: Final = 512
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NOWHERE: Final[Name] = (ROOT, b"")
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Nodes:
    """The inodes of one tree that the kernel knows. Used by one task at a time, never across an await."""

    def __init__(self, tree: str, depositor: Depositor, *, inherits: bool) -> None:
        self.root = os.open(tree, _HANDLE | os.O_DIRECTORY)
        self._root_inode = os.fstat(self.root).st_ino
        self._known = KnownNames()
        self._orphans = Orphans(depositor)
        self._directories: OrderedDict[int, int] = OrderedDict()  # descriptors, the longest unused first
        self._unexplored = inherits

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Closes all descriptors."""
        for fd in (*self._directories.values(), self.root):
            os.close(fd)
        self._directories.clear()
        self._orphans.close()

    def adopt(self, deposits: Iterable[tuple[Deposit, int]]) -> None:
        """Takes over the orphans that a daemon before this one had."""
        for inode in self._orphans.adopt(deposits):
            self._known.add(inode, _NOWHERE, 0)

    def add_nameless(self, found: os.stat_result, fd: int) -> None:
        """Counts a reply that made the kernel know a file that has no name (O_TMPFILE)."""
        orphan = os.open(b"/proc/self/fd/%d" % fd, os.O_PATH | os.O_CLOEXEC)
        self._orphans.announce(found.st_ino, orphan)
        self._orphans.keep(found.st_ino, orphan)
        self._known.add(found.st_ino, _NOWHERE, 1)

    def number(self, inode: int) -> int:
        """What the mount calls an inode of the tmpfs."""
        return ROOT if inode == self._root_inode else inode

    def seen(self, found: os.stat_result, parent: int, name: bytes) -> None:
        """Counts a reply that made the kernel know an inode by a name."""
        inode = found.st_ino
        known = self._known.get(inode)
        if known is None:
            self._known.add(inode, (parent, name), 1)
            return
        known.lookups += 1
        if known.name == name and known.parent == parent:
            return
        if inode in self._orphans:  # it had a further name, which the kernel did not know until now
            self._orphans.drop(inode)
            self._known.rename(inode, (parent, name))
        elif found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            self._known.add_name(inode, (parent, name))
        else:
            self._known.rename(inode, (parent, name))

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Takes back counts; what the kernel no longer knows is dropped."""
        for inode, count in forgotten:
            if self._known.forget(inode, count):
                self._orphans.drop(inode)
                self._drop_directory(inode)

    def directory(self, inode: int) -> int:
        """A descriptor (O_PATH) of a directory. Raises OSError, ESTALE when it is not known."""
        if inode == ROOT:
            return self.root
        fd = self._directories.get(inode)
        if fd is not None:
            self._directories.move_to_end(inode)
            return fd
        return self._open_directory(inode)

    def _open_directory(self, inode: int) -> int:
        names: list[bytes] = []
        above = inode
        while (start := self._descriptor(above)) is None:
            node = self._node(above)
            names.append(node.name)
            above = node.parent
        if not names:
            return start
        fd = start
        for name in reversed(names):
            try:
                below = os.open(name, _HANDLE | os.O_DIRECTORY, dir_fd=fd)
            finally:
                if fd != start:
                    os.close(fd)
            fd = below
        # Before the new one comes in, so that the one that the caller asked for just before stays.
        while len(self._directories) >= _CACHED_DIRECTORIES:
            os.close(self._directories.popitem(last=False)[1])
        self._directories[inode] = fd
        return fd

    def _drop_directory(self, inode: int) -> None:
        fd = self._directories.pop(inode, None)
        if fd is not None:
            os.close(fd)

    def _descriptor(self, inode: int) -> int | None:
        if inode == ROOT:
            return self.root
        fd = self._directories.get(inode)
        return self._orphans.get(inode) if fd is None else fd

    def _node(self, inode: int) -> Known:
        known = self._known.get(inode)
        if known is None and self._unexplored:
            self._explore()
            known = self._known.get(inode)
        if known is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return known

    def _explore(self) -> None:
        self._unexplored = False
        explore(self.root, ROOT, self._saw_name)

    def _saw_name(self, inode: int, parent: int, name: bytes) -> None:
        if inode not in self._known:
            self._known.add(inode, (parent, name), 0)
        elif inode not in self._orphans:
            self._known.add_name(inode, (parent, name))

    def status(self, inode: int) -> os.stat_result:
        """What lstat says. Raises OSError."""
        fd = self.root if inode == ROOT else self._orphans.get(inode)
        if fd is not None:
            return os.stat(fd)
        node = self._node(inode)
        found = os.stat(node.name, dir_fd=self.directory(node.parent), follow_symlinks=False)
        if found.st_ino != inode:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    def name(self, inode: int) -> tuple[int, bytes] | None:
        """A directory's descriptor and the name in it that leads to an inode; None for an orphan."""
        if inode == ROOT:
            return self.root, b"."
        if inode in self._orphans:
            return None
        node = self._node(inode)
        return self.directory(node.parent), node.name

    @contextmanager
    def path(self, inode: int) -> Iterator[bytes]:
        """A path that leads to exactly this inode, for system calls that take nothing else."""
        fd = self.root if inode == ROOT else self._orphans.get(inode)
        if fd is not None:
            yield b"/proc/self/fd/%d" % fd
            return
        node = self._node(inode)
        fd = os.open(node.name, _HANDLE, dir_fd=self.directory(node.parent))
        try:
            if os.fstat(fd).st_ino != inode:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield b"/proc/self/fd/%d" % fd
        finally:
            os.close(fd)

    def open(self, inode: int, flags: int) -> int:
        """Opens a regular file. Raises OSError."""
        orphan = self._orphans.get(inode)
        if orphan is not None:
            return os.open(b"/proc/self/fd/%d" % orphan, flags | os.O_CLOEXEC)
        node = self._node(inode)
        fd = os.open(node.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory(node.parent))
        # A writer was made ready for this very inode.
        if os.fstat(fd).st_ino != inode:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    @contextmanager
    def removing(self, parent: int, name: bytes) -> Iterator[int]:
        """Around the system call that removes a name; gives the parent's descriptor. Raises OSError."""
        directory = self.directory(parent)
        leaving = self._leaving(directory, name)
        try:
            yield directory
        except BaseException:
            self._stay(leaving)
            raise
        self._left(leaving, (parent, name))

    @contextmanager
    def renaming(self, old: Name, new: Name, *, exchange: bool) -> Iterator[tuple[int, int]]:
        """Around the system call that renames; gives the descriptors of both parents. Raises OSError."""
        old_directory, new_directory = self.directory(old[0]), self.directory(new[0])
        moved = os.stat(old[1], dir_fd=old_directory, follow_symlinks=False).st_ino
        try:
            replaced = self._leaving(new_directory, new[1])
        except FileNotFoundError:
            replaced = _Leaving(0, None)
        try:
            yield old_directory, new_directory
        except BaseException:
            self._stay(replaced)
            raise
        if moved == replaced.inode:  # two names of one file: rename(2) does nothing
            self._stay(replaced)
        elif exchange:
            self._stay(replaced)
            self._known.move(moved, old, new)
            self._known.move(replaced.inode, new, old)
        else:
            self._left(replaced, new)
            self._known.move(moved, old, new)

    def _leaving(self, directory: int, name: bytes) -> _Leaving:
        inode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
        if self._unexplored and inode not in self._known:
            self._explore()
        if inode not in self._known or self._known.has_several(inode) or inode in self._orphans:
            return _Leaving(inode, None)
        try:
            fd = os.open(name, _HANDLE, dir_fd=directory)
        except OSError as error:
            # Without descriptors the file can be removed all the same; who holds it gets ESTALE for its attributes.
            if error.errno not in _NO_DESCRIPTORS:
                raise
            return _Leaving(inode, None)
        self._orphans.announce(inode, fd)
        return _Leaving(inode, fd)

    def _left(self, leaving: _Leaving, name: Name) -> None:
        if self._known.remove_name(leaving.inode, name):
            self._drop_directory(leaving.inode)
            if leaving.fd is not None:
                self._orphans.keep(leaving.inode, leaving.fd)

    def _stay(self, leaving: _Leaving) -> None:
        if leaving.fd is not None:
            self._orphans.withdraw(leaving.inode, leaving.fd)


class _Leaving:
    """An inode that is about to lose a name, held so that it can become an orphan."""

    __slots__ = ("fd", "inode")

    def __init__(self, inode: int, fd: int | None) -> None:
        self.inode = inode
        self.fd = fd
