"""Random operations on a mount and on a plain tmpfs directory, side by side."""

from __future__ import annotations

import fcntl
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes
from tests.fs.filling import Fillable
from tests.fs.mounted import Place
from tests.fs.oracle import LONG_AGO_NS, Side

names = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe \n", b"l" * 255])
paths = st.lists(names, min_size=1, max_size=2).map(b"/".join)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o1777, 0o2755, 0o4711, 0])
sizes = st.sampled_from([0, 1, 4095, 4096, 70_000])
contents = st.sampled_from([b"", b"x", b"hello" * 1000, bytes(5000), b"z" * 70_000])
numbers = st.integers(0, 5)
times = st.integers(0, 10**9).map(lambda fraction: LONG_AGO_NS + fraction)
user_attributes = st.sampled_from([b"user.a", b"user.b", b"user."])
attributes = user_attributes | st.just(b"security.x")
access = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
creation = st.sampled_from(
    [0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC, os.O_NOFOLLOW]
)
special = st.sampled_from([0, 0, os.O_APPEND, os.O_DIRECT, os.O_SYNC, os.O_DIRECTORY])
places = st.lists(st.integers(0, 50), max_size=4)
# linux/falloc.h: plain, keep the size, punch, collapse, zero, zero and keep, insert, unknown
allocations = st.sampled_from([0, 1, 3, 8, 16, 17, 32, 2, 128])
lengths = st.sampled_from([0, 1, 4096, 8192, 50_000])
# What is done while the tier is full. No file is made that gets room when it is made, and none is opened for writing,
# which takes a copy of a sealed one; nor does anything lose its name, whose room comes back a moment later.
in_little_room: dict[str, Callable[[Side, int, int, bytes], Any]] = {
    "pwrite": lambda side, number, offset, content: side.pwrite(number, offset, content),
    "append": lambda side, number, offset, content: side.append(number, content),
    "ftruncate": lambda side, number, offset, content: side.ftruncate(number, offset),
    "allocate": lambda side, number, offset, content: side.fallocate(number, 0, offset, len(content)),
    "allocate and keep": lambda side, number, offset, content: side.fallocate(number, 1, offset, len(content)),
    "punch": lambda side, number, offset, content: side.fallocate(number, 3, offset, len(content)),
    "copy": lambda side, number, offset, content: side.copy_range(0, 0, number, offset, len(content)),
    "sendfile": lambda side, number, offset, content: side.sendfile(0, offset, number, len(content)),
    "nameless": lambda side, number, offset, content: side.write_nameless(content),
    "mkdir": lambda side, number, offset, content: side.mkdir(b"full-directory", 0o755),
    "rename": lambda side, number, offset, content: side.rename(b"c", b"full-c", 1),
    "symlink": lambda side, number, offset, content: side.symlink(b"x" * 3000, b"full-link"),
    "setxattr": lambda side, number, offset, content: side.setxattr(b"a", b"user.full", content[:1000], 0),
}
things_in_little_room = st.lists(
    st.tuples(st.sampled_from(sorted(in_little_room)), sizes, sizes), min_size=1, max_size=5
)


def _try_in_little_room(side: Side, what: str, number: int, offset: int, content: bytes) -> tuple[Any, int]:
    return side.try_(in_little_room[what], number, offset, content), side.free_bytes()


class Volume(Protocol):
    """A volume that is mounted."""

    path: Path
    place: Place


class Machine(RuleBasedStateMachine):
    """``tiers`` are the tmpfs that the mount is of, and the plain one, if both can be made small for a while."""

    tiers: tuple[Fillable, Fillable] | None = None
    fallen: ClassVar[Counter[str]] = Counter()
    """How often each thing happened that is no operation of the job's; a subclass that looks has one of its own."""

    def __init__(self, mounted: Volume, reference: Path, number: int) -> None:
        super().__init__()
        self.mounted = mounted
        self.top = f"example-{number}"
        for root in (mounted.path, reference):
            (root / self.top).mkdir()
        self.sides = (Side(mounted.path / self.top), Side(reference / self.top))
        self.history: list[str] = []
        self.sealed: list[Blob] = []
        self.mapped: set[int] = set()
        # Most random paths lead nowhere in an empty tree.
        for name in (b"a", b"b"):
            self.both(Side.mkdir, name, 0o755)
            self.both(Side.mknod, name + b"/c", stat.S_IFREG | 0o644)
        self.both(Side.mknod, b"c", stat.S_IFREG | 0o644)

    def both(self, operation: Any, *arguments: Any) -> None:
        done = f"{operation.__name__}{arguments!r:.200}"
        self.history.append(done)
        ours, theirs = (side.try_(operation, *arguments) for side in self.sides)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            same = {path for path in ours if ours[path] == theirs.get(path)}
            ours, theirs = ({p: found for p, found in tree.items() if p not in same} for tree in (ours, theirs))
        if ours != theirs:  # no assert, whose explanation would print content in full
            before = "\n".join(self.history)
            pytest.fail(f"{before}\n{done}: {ours!r:.2000}, on a tmpfs {theirs!r:.2000}", pytrace=False)

    def happened(self, what: str, more: str = "") -> None:
        """What is no operation of the job's."""
        self.fallen[what] += 1
        self.history.append(f"-- {what} {more}")

    @property
    def opened(self) -> int:
        return len(self.sides[0].files)

    @rule(path=paths, access=access, creation=creation, special=special, mode=modes)
    def open(self, path: bytes, access: int, creation: int, special: int, mode: int) -> None:
        if self.opened < 6:
            self.both(Side.open, path, access | creation | special | os.O_NONBLOCK, mode)

    @precondition(lambda self: self.opened)
    @rule(number=numbers)
    def close(self, number: int) -> None:
        self.both(Side.close, number % self.opened)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, offset=sizes, content=contents)
    def pwrite(self, number: int, offset: int, content: bytes) -> None:
        self.both(Side.pwrite, number % self.opened, offset, content)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, content=contents)
    def append(self, number: int, content: bytes) -> None:
        number %= self.opened
        if not stat.S_ISDIR(os.fstat(self.sides[1].files[number]).st_mode):  # which have an end of their own
            self.both(Side.append, number, content)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, offset=sizes, size=sizes)
    def pread(self, number: int, offset: int, size: int) -> None:
        self.both(Side.pread, number % self.opened, offset, size)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, content=contents)
    def map_and_write(self, number: int, content: bytes) -> None:
        number %= self.opened
        found = os.fstat(self.sides[1].files[number])
        if stat.S_ISREG(found.st_mode) and found.st_size:  # an empty mapping is refused by Python itself
            self.mapped.add(found.st_ino)
            self.both(Side.map_and_write, number, content)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, size=sizes)
    def ftruncate(self, number: int, size: int) -> None:
        self.both(Side.ftruncate, number % self.opened, size)

    @precondition(lambda self: self.opened)
    @rule(number=numbers)
    def fstat(self, number: int) -> None:
        self.both(Side.fstat, number % self.opened)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, mode=modes)
    def fchmod(self, number: int, mode: int) -> None:
        self.both(Side.fchmod, number % self.opened, mode)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, time_ns=times)
    def futime(self, number: int, time_ns: int) -> None:
        self.both(Side.futime, number % self.opened, time_ns)

    @precondition(lambda self: self.opened)
    @rule(number=numbers)
    def fsync(self, number: int) -> None:
        self.both(Side.fsync, number % self.opened)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, mode=allocations, offset=sizes, length=lengths)
    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        self.both(Side.fallocate, number % self.opened, mode, offset, length)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, offset=sizes, whence=st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE]))
    def seek_content(self, number: int, offset: int, whence: int) -> None:
        number %= self.opened
        # A mapping of a hole fills it on a tmpfs; and an entry of a directory has no content.
        found = os.fstat(self.sides[1].files[number])
        if stat.S_ISREG(found.st_mode) and found.st_ino not in self.mapped:
            self.both(Side.seek_content, number, offset, whence)

    @precondition(lambda self: self.opened)
    @rule(source=numbers, offset=sizes, into=numbers, into_offset=sizes, length=lengths)
    def copy_range(self, source: int, offset: int, into: int, into_offset: int, length: int) -> None:
        self.both(Side.copy_range, source % self.opened, offset, into % self.opened, into_offset, length)

    @precondition(lambda self: self.opened)
    @rule(source=numbers, offset=sizes, into=numbers, length=lengths)
    def sendfile(self, source: int, offset: int, into: int, length: int) -> None:
        source, into = source % self.opened, into % self.opened
        if not self._is_same(source, into):
            self.both(Side.sendfile, source, offset, into, length)

    def _is_same(self, source: int, into: int) -> bool:
        """What comes of a file that is sent into itself depends on what a pipe holds at a time."""
        return os.path.samestat(*(os.fstat(self.sides[1].files[number]) for number in (source, into)))

    @rule(path=paths, mode=modes)
    def open_nameless(self, path: bytes, mode: int) -> None:
        if self.opened < 6:
            self.both(Side.open_nameless, path, mode)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, path=paths)
    def give_name(self, number: int, path: bytes) -> None:
        self.both(Side.give_name, number % self.opened, path)

    @precondition(lambda self: self.opened)
    @rule(number=numbers, operation=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))
    def flock(self, number: int, operation: int) -> None:
        self.both(Side.flock, number % self.opened, operation)

    @precondition(lambda self: self.opened)
    @rule(
        number=numbers,
        kind=st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK]),
        start=st.integers(0, 5),
        length=st.integers(0, 5),
    )
    def lock_range(self, number: int, kind: int, start: int, length: int) -> None:
        self.both(Side.lock_range, number % self.opened, kind, start, length)

    @rule(path=paths, writers=st.integers(2, 4), content=st.sampled_from([b"x" * 100, b"y" * 5000]))
    def write_from_all_sides(self, path: bytes, writers: int, content: bytes) -> None:
        self.both(Side.write_from_all_sides, path, writers, content)

    @rule(path=paths, writers=st.integers(2, 4))
    def append_from_all_sides(self, path: bytes, writers: int) -> None:
        self.both(Side.append_from_all_sides, path, writers)

    @rule(path=paths, places=places)
    def list_with_seeks(self, path: bytes, places: list[int]) -> None:
        self.both(Side.list_with_seeks, path, places)

    @rule(path=paths, read=st.integers(0, 20))
    def list_while_it_changes(self, path: bytes, read: int) -> None:
        self.both(Side.list_while_it_changes, path, read, 0)

    @rule(path=paths, which=st.integers(0, 1), time_ns=times)
    def set_one_time(self, path: bytes, which: int, time_ns: int) -> None:
        self.both(Side.set_one_time, path, which, time_ns)

    @rule(path=paths, mode=st.integers(0, 7))
    def access(self, path: bytes, mode: int) -> None:
        self.both(Side.access, path, mode)

    @rule(path=paths, what=st.integers(0, 8))
    def somebody_else(self, path: bytes, what: int) -> None:
        self.both(Side.somebody_else, path, what)

    @rule(path=paths, size=sizes)
    def truncate(self, path: bytes, size: int) -> None:
        self.both(Side.truncate, path, size)

    @rule(path=paths)
    def lstat(self, path: bytes) -> None:
        self.both(Side.lstat, path)

    @rule(path=paths, mode=modes)
    def mkdir(self, path: bytes, mode: int) -> None:
        self.both(Side.mkdir, path, mode)

    @rule(path=paths)
    def rmdir(self, path: bytes) -> None:
        self.both(Side.rmdir, path)

    @rule(path=paths)
    def unlink(self, path: bytes) -> None:
        self.both(Side.unlink, path)

    @rule(old=paths, new=paths, flags=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 8]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.both(Side.rename, old, new, flags)

    @rule(old=paths, new=paths)
    def link(self, old: bytes, new: bytes) -> None:
        self.both(Side.link, old, new)

    @rule(leads_to=paths, path=paths)
    def symlink(self, leads_to: bytes, path: bytes) -> None:
        self.both(Side.symlink, leads_to, path)

    @rule(path=paths)
    def readlink(self, path: bytes) -> None:
        self.both(Side.readlink, path)

    @rule(path=paths, kind=st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR]), mode=modes)
    def mknod(self, path: bytes, kind: int, mode: int) -> None:
        self.both(Side.mknod, path, kind | mode)

    @rule(path=paths, mode=modes)
    def chmod(self, path: bytes, mode: int) -> None:
        self.both(Side.chmod, path, mode)

    @rule(path=paths, uid=st.sampled_from([-1, 0, 1000]), gid=st.sampled_from([-1, 0, 1000]))
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.both(Side.chown, path, uid, gid)

    @rule(path=paths, time_ns=times)
    def utime(self, path: bytes, time_ns: int) -> None:
        self.both(Side.utime, path, time_ns)

    @rule(path=paths)
    def listdir(self, path: bytes) -> None:
        self.both(Side.listdir, path)

    @rule(
        path=paths,
        name=user_attributes,
        value=contents,
        flags=st.integers(0, 2),
    )
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self.both(Side.setxattr, path, name, value[:1000], flags)

    @rule(path=paths, name=attributes)
    def getxattr(self, path: bytes, name: bytes) -> None:
        self.both(Side.getxattr, path, name)

    @rule(path=paths)
    def listxattr(self, path: bytes) -> None:
        self.both(Side.listxattr, path)

    @rule(path=paths, name=user_attributes)
    def removexattr(self, path: bytes, name: bytes) -> None:
        self.both(Side.removexattr, path, name)

    @rule(path=paths)
    def seal(self, path: bytes) -> None:
        """What a worker does with a file that nobody is writing."""
        inside = os.path.join(os.fsencode(self.top), path)
        live = os.path.join(os.fsencode(self.mounted.place.tree), inside)
        try:
            found = os.lstat(live)
        except OSError:
            return
        writers = [os.fstat(fd).st_ino for fd in self.sides[0].files]
        given_up = os.path.lexists(os.path.join(self.mounted.place.volume.remote, str(found.st_ino)))
        if stat.S_ISREG(found.st_mode) and found.st_ino not in writers and not given_up:
            blob = self.mounted.place.seal(inside)
            if blob:
                self.sealed.append(blob)

    @invariant()
    def sealed_content_stays_what_it_was(self) -> None:
        for blob in self.sealed:
            assert hash_bytes(self.mounted.place.blob_content(blob)) == blob

    @precondition(lambda self: self.tiers and self.opened)
    @rule(
        number=numbers,
        pages=st.integers(0, 3),
        things=things_in_little_room,
    )
    def fill(self, number: int, pages: int, things: list[tuple[str, int, int]]) -> None:
        """The tier is full but for a few pages, for the time of a few things."""
        assert self.tiers
        number %= self.opened
        files = [os.fstat(self.sides[1].files[one]) for one in (0, number)]
        # How many pages a mapping of a hole has made is not ours to say.
        if not all(stat.S_ISREG(found.st_mode) and found.st_ino not in self.mapped for found in files):
            return
        self.before_the_tier_is_full()
        with self.tiers[0].filled_up(0):
            self._have_all_closed()
        self.happened("the tier is full", f"but for {pages} pages")
        with self.tiers[0].filled_up(pages), self.tiers[1].filled_up(pages):
            for what, offset, length in things:
                if what == "sendfile" and self._is_same(0, number):
                    continue
                self.history.append(f"-- {what} {number} {offset} {length}")
                self.both(_try_in_little_room, what, number, offset, b"f" * length)

    def before_the_tier_is_full(self) -> None:
        """For a subclass that has something to wait for."""

    def _have_all_closed(self) -> None:
        """Pages of what is closed and has no name are free a moment later; a create in a full tier waits for that."""
        probe = self.mounted.path / "probe"
        probe.touch()
        probe.unlink()

    def teardown(self) -> None:
        try:
            self.both(Side.walk)
        finally:
            for side in self.sides:
                side.close_all()
