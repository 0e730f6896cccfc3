"""What programs rely on, one by one, on a real mount that has no worker: files and their content."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path

import pytest

from tests.fs.callers import fails_with
from tests.fs.mounted import Mounted

pytestmark = pytest.mark.fuse

pytestmark = pytest.mark.fuse
_OPEN_FILE_LOCK = 37  # F_OFD_SETLK, linux/fcntl.h: Python 3.11 lacks the name


def test_a_file_can_be_renamed_over_one_that_is_open_and_locked(mnt: Path) -> None:
    (mnt / "target").write_bytes(b"old")
    with (mnt / "target").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (mnt / "new").write_bytes(b"new")
        (mnt / "new").rename(mnt / "target")
        assert held.read() == b"old"
        assert os.fstat(held.fileno()).st_nlink == 0
    assert (mnt / "target").read_bytes() == b"new"


def test_an_unlinked_file_works_until_its_last_close(mnt: Path) -> None:
    with (mnt / "file").open("w+b") as file:
        (mnt / "file").unlink()
        file.write(b"still here")
        file.flush()
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 5)
        os.utime(file.fileno(), ns=(1, 2))
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size, found.st_mode & 0o777, found.st_mtime_ns) == (0, 5, 0o600, 2)
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
            assert again.read() == b"still"
    assert list(mnt.iterdir()) == []


def test_sparse_files_take_little_room(mounted: Mounted) -> None:
    with (mounted.path / "sparse").open("wb") as file:
        file.seek(10 << 30)
        file.write(b"end")
    found = (mounted.path / "sparse").stat()
    assert found.st_size == (10 << 30) + 3
    assert found.st_blocks * 512 < 4 << 20
    with (mounted.path / "sparse").open("rb") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"\0\0end"


def test_a_shared_mapping_writes_to_the_file(mounted: Mounted) -> None:
    with (mounted.path / "file").open("w+b") as file:
        file.truncate(100_000)
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[50_000:50_005] = b"hello"
            mapped.flush()
            assert os.pread(file.fileno(), 5, 50_000) == b"hello"
            mapped[0:5] = b"start"
    content = (mounted.place.tree / "file").read_bytes()
    assert (content[50_000:50_005], content[:5]) == (b"hello", b"start")


def test_a_private_mapping_does_not(mnt: Path) -> None:
    (mnt / "file").write_bytes(b"before")
    with (mnt / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        mapped[:6] = b"AFTER!"
    assert (mnt / "file").read_bytes() == b"before"


def test_locks_of_every_kind_exclude(mnt: Path) -> None:
    (mnt / "lock").touch()
    with (mnt / "lock").open("r+b") as one, (mnt / "lock").open("r+b") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        fails_with(errno.EAGAIN, lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        whole_file = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(one, _OPEN_FILE_LOCK, whole_file)
        fails_with(errno.EAGAIN, lambda: fcntl.fcntl(other, _OPEN_FILE_LOCK, whole_file))


def test_one_writev_of_66_megabytes_is_written_whole(mounted: Mounted) -> None:
    pieces = [bytes([number]) * (11 << 20) for number in range(6)]
    fd = os.open(mounted.path / "big", os.O_WRONLY | os.O_CREAT)
    assert os.writev(fd, pieces) == 66 << 20
    os.close(fd)
    assert (mounted.place.tree / "big").read_bytes() == b"".join(pieces)


def test_appends_of_two_writers_do_not_overwrite_each_other(mnt: Path) -> None:
    files = [(mnt / "log").open("ab", buffering=0) for _ in range(2)]
    for number in range(100):
        files[number % 2].write(b"%03d\n" % number)
    for file in files:
        file.close()
    assert (mnt / "log").read_bytes() == b"".join(b"%03d\n" % number for number in range(100))


def test_truncating_at_open_empties_a_file_and_reading_past_the_end_gives_nothing(mnt: Path) -> None:
    (mnt / "file").write_bytes(b"content")
    with (mnt / "file").open("wb"):
        assert (mnt / "file").stat().st_size == 0
    assert (mnt / "file").read_bytes() == b""


def test_direct_io_reads_and_writes(mounted: Mounted) -> None:
    fd = os.open(mounted.path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as aligned:
        aligned[:] = b"d" * 8192
        assert os.writev(fd, [aligned]) == 8192
        os.lseek(fd, 4096, os.SEEK_SET)
        assert os.readv(fd, [aligned]) == 4096
    os.close(fd)
    assert (mounted.place.tree / "direct").read_bytes() == b"d" * 8192


def test_times_are_kept_to_the_nanosecond(mnt: Path) -> None:
    (mnt / "file").touch()
    os.utime(mnt / "file", ns=(1_234_567_890_123_456_789, 1_987_654_321_987_654_321))
    found = (mnt / "file").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_234_567_890_123_456_789, 1_987_654_321_987_654_321)


def test_fifos_and_sockets_work_and_devices_cannot_be_opened(mnt: Path) -> None:
    os.mkfifo(mnt / "fifo")
    reader = os.open(mnt / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(mnt / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)
    os.mknod(mnt / "socket", stat.S_IFSOCK | 0o600)
    assert stat.S_ISSOCK((mnt / "socket").stat().st_mode)
    if os.geteuid() == 0:
        os.mknod(mnt / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        fails_with(errno.EACCES, lambda: os.open(mnt / "null", os.O_RDONLY))


def test_the_room_shown_is_that_of_the_ram_tier(mounted: Mounted) -> None:
    ours, theirs = os.statvfs(mounted.path), os.statvfs(mounted.place.tree)
    assert (ours.f_blocks, ours.f_bsize, ours.f_files, ours.f_namemax) == (
        theirs.f_blocks, theirs.f_bsize, theirs.f_files, 255,
    )  # fmt: skip


def test_what_is_no_operation_of_a_filesystem_has_an_errno_that_tools_cope_with(mnt: Path) -> None:
    fd = os.open(mnt / "file", os.O_RDWR | os.O_CREAT)
    fails_with(errno.ENOTTY, lambda: fcntl.ioctl(fd, 0x1234))
    os.close(fd)
