"""Files that are made of a spare are files like all others."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.spares import Spares
from tests.fs.callers import NOBODY, as_nobody, fails_with, let_everybody_in
from tests.fs.mounted import Mounted, Place
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SIZE = 32 * MIB


def keep(place: Place, count: int = 1) -> Spares:
    spares = Spares(Layout(place.layout.root))
    for _ in range(count):
        with spares.begin(SIZE) as spare:
            assert spare.fill(0, SIZE)
            assert spare.finish()
    return spares


@pytest.fixture
def mnt(mounted: Mounted) -> Path:
    """A mount that knows how large ``step_2.bin`` will be, and where everybody may make it."""
    with (mounted.path / "step_1.bin").open("wb") as file:
        file.truncate(SIZE)
    let_everybody_in(mounted.path)
    return mounted.path


def make(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)


def test_a_successor_is_made_of_a_spare_and_reads_as_it_was_written(mnt: Path, mounted: Mounted) -> None:
    spares = keep(mounted.place)
    os.umask(before := os.umask(0))
    fd = make(mnt / "step_2.bin")
    assert spares.sizes() == []
    found = os.fstat(fd)
    assert (found.st_size, stat.S_IMODE(found.st_mode)) == (0, 0o640 & ~before)
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    assert found.st_mtime_ns >= (mnt / "step_1.bin").stat().st_mtime_ns
    os.pwrite(fd, b"content", MIB)
    os.ftruncate(fd, 3 * MIB)
    os.close(fd)
    content = bytes(MIB) + b"content" + bytes(2 * MIB - 7)
    assert (mnt / "step_2.bin").read_bytes() == content
    assert (mounted.place.tree / "step_2.bin").read_bytes() == content


def test_room_that_it_did_not_need_is_given_back(mnt: Path, mounted: Mounted) -> None:
    keep(mounted.place)
    (mnt / "step_2.bin").write_bytes(b"little")
    inside = mounted.place.tree / "step_2.bin"
    mounted.unmount()  # what the close set off is done
    assert mounted.wait() == 0
    assert inside.stat().st_blocks * 512 < MIB
    assert inside.read_bytes() == b"little"


def test_spares_are_room(mnt: Path, mounted: Mounted) -> None:
    spares = keep(mounted.place)
    with_them = os.statvfs(mnt)
    spares.give_up()
    without = os.statvfs(mnt)
    assert abs(with_them.f_bavail - without.f_bavail) * with_them.f_frsize < SIZE // 2


def test_a_name_that_is_there_is_refused(mnt: Path, mounted: Mounted) -> None:
    keep(mounted.place)
    (mounted.place.tree / "step_2.bin").write_bytes(b"theirs")
    fails_with(errno.EEXIST, lambda: make(mnt / "step_2.bin"))
    assert (mnt / "step_2.bin").read_bytes() == b"theirs"


@pytest.mark.root
def test_it_is_its_makers(mnt: Path, mounted: Mounted) -> None:
    spares = keep(mounted.place)
    assert as_nobody(lambda: make(mnt / "step_2.bin")) == 0
    assert spares.sizes() == []
    found = (mnt / "step_2.bin").stat()
    assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)


@pytest.mark.root
def test_where_a_directory_hands_on_its_group_the_kernel_makes_it(mnt: Path, mounted: Mounted) -> None:
    spares = keep(mounted.place)
    shared = mnt / "shared"
    shared.mkdir()
    with (shared / "step_1.bin").open("wb") as file:
        file.truncate(SIZE)
    os.chown(shared, -1, 1234)
    shared.chmod(0o2777)
    assert as_nobody(lambda: make(shared / "step_2.bin")) == 0
    assert (shared / "step_2.bin").stat().st_gid == 1234
    assert spares.sizes() == [SIZE]


@pytest.mark.root
def test_a_daemon_that_dies_when_it_has_made_it_loses_nothing(
    start: Callable[..., Mounted], place: Place, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    with (place.tree / "step_1.bin").open("wb") as file:
        file.truncate(SIZE)
    keep(place, 2)
    mounted = start(program=("tests.fs.dying", "", "CREATE"), passthrough="off")
    let_everybody_in(mounted.path)
    (mounted.path / "step_1.bin").stat()

    def save() -> None:
        fd = make(mounted.path / "step_2.bin")
        os.write(fd, b"content")
        os.close(fd)

    assert as_nobody(save) == 0
    found = (mounted.path / "step_2.bin").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o700) == (NOBODY, 0o600)
    assert (mounted.path / "step_2.bin").read_bytes() == b"content"
    assert place.log.read_text().count("daemon.ended") == 1
