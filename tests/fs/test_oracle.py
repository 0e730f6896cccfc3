"""Random operations on a mount and on a plain tmpfs directory have the same outcome."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes
from tests.fs.mounted import Mounted
from tests.fs.oracle import LONG_AGO_NS, Side

pytestmark = pytest.mark.fuse

names = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe \n", b"long" * 63])
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
appending = st.sampled_from([0, os.O_APPEND])


class Machine(RuleBasedStateMachine):
    def __init__(self, mounted: Mounted, reference: Path, number: int) -> None:
        super().__init__()
        self.mounted = mounted
        self.top = f"example-{number}"
        for root in (mounted.path, reference):
            (root / self.top).mkdir()
        self.sides = (Side(mounted.path / self.top), Side(reference / self.top))
        self.sealed: list[Blob] = []
        # Most random paths lead nowhere in an empty tree.
        for name in (b"a", b"b"):
            self.both(Side.mkdir, name, 0o755)
            self.both(Side.mknod, name + b"/c", stat.S_IFREG | 0o644)
        self.both(Side.mknod, b"c", stat.S_IFREG | 0o644)

    def both(self, operation: Any, *arguments: Any) -> None:
        ours, theirs = (side.try_(operation, *arguments) for side in self.sides)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            same = {path for path in ours if ours[path] == theirs.get(path)}
            ours, theirs = ({p: found for p, found in tree.items() if p not in same} for tree in (ours, theirs))
        if ours != theirs:  # no assert, whose explanation would print content in full
            said = f"{operation.__name__}{arguments!r:.200}: {ours!r:.2000}, on a tmpfs {theirs!r:.2000}"
            pytest.fail(said, pytrace=False)

    @property
    def opened(self) -> int:
        return len(self.sides[0].files)

    @rule(path=paths, access=access, creation=creation, appending=appending, mode=modes)
    def open(self, path: bytes, access: int, creation: int, appending: int, mode: int) -> None:
        if self.opened < 6:
            self.both(Side.open, path, access | creation | appending | os.O_NONBLOCK, mode)

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

    @rule(old=paths, new=paths, flags=st.sampled_from([0, 0, 1, 2, 3]))
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

    @rule(path=paths, kind=st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK]), mode=modes)
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
        if stat.S_ISREG(found.st_mode) and found.st_ino not in writers:
            blob = self.mounted.place.seal(inside)
            if blob:
                self.sealed.append(blob)

    @invariant()
    def sealed_content_stays_what_it_was(self) -> None:
        for blob in self.sealed:
            assert hash_bytes(self.mounted.place.blob_content(blob)) == blob

    def teardown(self) -> None:
        try:
            self.both(Side.walk)
        finally:
            for side in self.sides:
                side.close_all()


@pytest.fixture
def reference(memory_path: Path) -> Iterator[Path]:
    before = os.umask(0o022)
    try:
        path = memory_path / "reference"
        path.mkdir()
        yield path
    finally:
        os.umask(before)


@pytest.mark.root
def test_random_operations_have_the_outcome_that_they_have_on_a_tmpfs(mounted: Mounted, reference: Path) -> None:
    examples = count(1)
    run_state_machine_as_test(
        lambda: Machine(mounted, reference, next(examples)),  # type: ignore[arg-type]  # any factory will do
        settings=settings(settings.default, max_examples=30, stateful_step_count=60),
    )
