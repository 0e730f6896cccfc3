"""Which file an inode number of the mount means: its name in the tree, for as long as the kernel knows it.

Inode numbers are those of the tmpfs, except the root, which is 1. A name is a parent and a last part, and every
system call is made relative to a descriptor of the parent, without following symlinks: so a directory can be
renamed without touching what is below it, paths may be as long as they like, and nothing leaves the tree.

What the kernel has looked up and not forgotten is here, and nothing else. The invariant: a known inode either has
a name here that leads to it, or, once its last known name is gone, a descriptor of its own (an orphan: a file that
is unlinked and still open, somebody's removed working directory).

Descriptors of directories are cached; one that ``directory`` gave is good until the next await.

What a daemon before this one had told the kernel is found by walking the tree, once, when the kernel first names an
inode that is not known here. Orphans are left with the keeper before they lose their last name.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from fuse_tier.mount.deposits import Deposit, Depositor, Kind, orphan_key

log = structlog.get_logger(__name__)

ROOT: Final = 1  # FUSE_ROOT_ID
_CACHED_DIRECTORIES: Final = 512
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

Name = tuple[int, bytes]
"""The parent's inode number, and the last part."""


class _Node:
    __slots__ = ("lookups", "name", "parent")

    def __init__(self, parent: int, name: bytes, lookups: int) -> None:
        self.parent = parent
        self.name = name
        self.lookups = lookups


class Nodes:
    """The inodes of one tree that the kernel knows. Used by one task at a time, never across an await."""

    def __init__(self, tree: str, depositor: Depositor, *, inherits: bool) -> None:
        self.root = os.open(tree, _HANDLE | os.O_DIRECTORY)
        self._root_inode = os.fstat(self.root).st_ino
        self._known: dict[int, _Node] = {}
        self._more_names: dict[int, set[Name]] = {}  # of inodes known by several
        self._orphans: dict[int, int] = {}  # descriptors
        self._directories: OrderedDict[int, int] = OrderedDict()  # descriptors, the longest unused first
        self._depositor = depositor
        self._unexplored = inherits

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Closes all descriptors."""
        for fd in (*self._directories.values(), *self._orphans.values(), self.root):
            os.close(fd)
        self._directories.clear()
        self._orphans.clear()

    def adopt(self, deposits: Iterable[tuple[Deposit, int]]) -> None:
        """Takes over the orphans that a daemon before this one had."""
        for deposit, fd in deposits:
            if deposit.kind is Kind.ORPHAN:
                self._orphans[deposit.inode] = fd
                self._known[deposit.inode] = _Node(ROOT, b"", 0)

    def add_nameless(self, found: os.stat_result, fd: int) -> None:
        """Counts a reply that made the kernel know a file that has no name (O_TMPFILE)."""
        orphan = os.open(b"/proc/self/fd/%d" % fd, os.O_PATH | os.O_CLOEXEC)
        self._keep_orphan(found.st_ino, orphan)
        self._known[found.st_ino] = _Node(ROOT, b"", 1)

    def number(self, inode: int) -> int:
        """What the mount calls an inode of the tmpfs."""
        return ROOT if inode == self._root_inode else inode

    def seen(self, found: os.stat_result, parent: int, name: bytes) -> None:
        """Counts a reply that made the kernel know an inode by a name."""
        inode = found.st_ino
        node = self._known.get(inode)
        if node is None:
            self._known[inode] = _Node(parent, name, 1)
            return
        node.lookups += 1
        if node.name != name or node.parent != parent:
            if inode in self._orphans:  # it had a further name, which the kernel did not know until now
                self._drop_orphan(inode)
                node.parent, node.name = parent, name
            elif found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                self._more_names.setdefault(inode, set()).add((parent, name))
            else:
                node.parent, node.name = parent, name

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Takes back counts; what the kernel no longer knows is dropped."""
        for inode, count in forgotten:
            node = self._known.get(inode)
            if node is None:
                continue
            node.lookups -= count
            if node.lookups > 0:
                continue
            del self._known[inode]
            self._more_names.pop(inode, None)
            self._drop_orphan(inode)
            fd = self._directories.pop(inode, None)
            if fd is not None:
                os.close(fd)

    def _keep_orphan(self, inode: int, fd: int) -> None:
        self._depositor.leave(Deposit.of_orphan(inode), fd)
        self._orphans[inode] = fd

    def _drop_orphan(self, inode: int) -> None:
        fd = self._orphans.pop(inode, None)
        if fd is not None:
            os.close(fd)
            self._depositor.remove(orphan_key(inode))

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

    def _descriptor(self, inode: int) -> int | None:
        if inode == ROOT:
            return self.root
        fd = self._directories.get(inode)
        return self._orphans.get(inode) if fd is None else fd

    def _node(self, inode: int) -> _Node:
        node = self._known.get(inode)
        if node is None and self._unexplored:
            self._explore()
            node = self._known.get(inode)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def _explore(self) -> None:
        """Learns the names of all that is there. Blocks, so that the tree stays as it is meanwhile."""
        self._unexplored = False
        started = time.monotonic()
        gc.disable()  # it would look at all of them again and again, and find nothing
        # One descriptor for each directory on the way down, and the names of those that are still to be read in it.
        way: list[tuple[int, list[tuple[bytes, int]]]] = []
        try:
            way.append(self._read_directory(self.root, b".", ROOT))
            while way:
                fd, below = way[-1]
                if below:
                    name, inode = below.pop()
                    way.append(self._read_directory(fd, name, inode))
                else:
                    os.close(way.pop()[0])
        finally:
            gc.enable()
            for fd, _ in way:
                os.close(fd)
        log.info("tree.explored", inodes=len(self._known), seconds=round(time.monotonic() - started, 3))

    def _read_directory(self, parent_fd: int, name: bytes, inode: int) -> tuple[int, list[tuple[bytes, int]]]:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        below = []
        known = self._known
        with os.scandir(b"/proc/self/fd/%d" % fd) as entries:
            for entry in entries:
                number, entry_name = entry.inode(), entry.name
                node = known.get(number)
                if node is None:
                    known[number] = _Node(inode, entry_name, 0)
                elif (node.parent, node.name) != (inode, entry_name) and number not in self._orphans:
                    self._more_names.setdefault(number, set()).add((inode, entry_name))
                if entry.is_dir(follow_symlinks=False):
                    below.append((entry_name, number))
        return fd, below

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
            self._move(moved, old, new)
            self._move(replaced.inode, new, old)
        else:
            self._left(replaced, new)
            self._move(moved, old, new)

    def _leaving(self, directory: int, name: bytes) -> _Leaving:
        inode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
        if self._unexplored and inode not in self._known:
            self._explore()
        if inode not in self._known or inode in self._more_names or inode in self._orphans:
            return _Leaving(inode, None)
        try:
            fd = os.open(name, _HANDLE, dir_fd=directory)
        except OSError as error:
            # Without descriptors the file can be removed all the same; who holds it gets ESTALE for its attributes.
            if error.errno not in _NO_DESCRIPTORS:
                raise
            return _Leaving(inode, None)
        self._depositor.leave(Deposit.of_orphan(inode), fd)
        return _Leaving(inode, fd)

    def _left(self, leaving: _Leaving, name: Name) -> None:
        inode, node = leaving.inode, self._known.get(leaving.inode)
        if node is None:
            return
        others = self._more_names.get(inode)
        if others is not None:
            self._stay(leaving)
            others.discard(name)
            if (node.parent, node.name) == name and others:
                node.parent, node.name = others.pop()
            if not others:
                del self._more_names[inode]
            return
        cached = self._directories.pop(inode, None)
        if cached is not None:
            os.close(cached)
        if leaving.fd is not None:
            self._orphans[inode] = leaving.fd

    def _stay(self, leaving: _Leaving) -> None:
        if leaving.fd is not None:
            os.close(leaving.fd)
            self._depositor.remove(orphan_key(leaving.inode))

    def _move(self, inode: int, old: Name, new: Name) -> None:
        node = self._known.get(inode)
        if node is None:
            return
        others = self._more_names.get(inode)
        if others is not None and old in others:
            others.discard(old)
            others.add(new)
        else:
            node.parent, node.name = new


class _Leaving:
    """An inode that is about to lose a name, held so that it can become an orphan."""

    __slots__ = ("fd", "inode")

    def __init__(self, inode: int, fd: int | None) -> None:
        self.inode = inode
        self.fd = fd
