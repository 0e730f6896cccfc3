"""Room and ranges of files: what pyfuse3 has no handlers for, and a tmpfs does."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuse

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32  # linux/falloc.h
MIB = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def give_name(fd: int, parent: Path) -> None:
    directory = os.open(parent, os.O_RDONLY)
    try:
        # Only with a descriptor does Python follow the link in /proc.
        os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory)
    finally:
        os.close(directory)


def outcome(action: Callable[[], object]) -> object:
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.fixture
def fd(mnt: Path) -> int:
    (mnt / "file").write_bytes(b"x" * MIB)
    return os.open(mnt / "file", os.O_RDWR)


@pytest.mark.parametrize(
    ("mode", "offset", "size"),
    [
        (0, 0, 2 * MIB),
        (KEEP_SIZE, MIB, 4 * MIB),
        (KEEP_SIZE | PUNCH_HOLE, 4096, 8192),
        (PUNCH_HOLE, 4096, 8192),
        (ZERO_RANGE, 0, 4096),
        (COLLAPSE_RANGE, 0, 4096),
        (INSERT_RANGE, 0, 4096),
        (0, 0, 0),
        (0, 0, 1 << 40),
        (0x8000, 0, 4096),
    ],
)
def test_fallocate_does_what_it_does_on_a_tmpfs(
    mnt: Path, fd: int, memory_path: Path, mode: int, offset: int, size: int
) -> None:
    beside = memory_path / "file"
    beside.write_bytes(b"x" * MIB)
    other = os.open(beside, os.O_RDWR)
    assert outcome(lambda: fallocate(fd, mode, offset, size)) == outcome(lambda: fallocate(other, mode, offset, size))
    ours, theirs = os.fstat(fd), os.fstat(other)
    assert (ours.st_size, ours.st_blocks) == (theirs.st_size, theirs.st_blocks)
    assert (mnt / "file").read_bytes() == beside.read_bytes()
    os.close(other)
    os.close(fd)


def test_fallocate_wants_a_file_that_is_open_for_writing(mnt: Path) -> None:
    (mnt / "file").touch()
    with (mnt / "file").open("rb") as file, pytest.raises(OSError) as caught:
        fallocate(file.fileno(), 0, 0, 4096)
    assert caught.value.errno == errno.EBADF


def test_data_and_holes_are_found(fd: int) -> None:
    os.ftruncate(fd, 8 * MIB)
    os.pwrite(fd, b"more", 6 * MIB)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    hole = os.lseek(fd, 0, os.SEEK_HOLE)
    assert MIB <= hole < 6 * MIB
    assert hole < os.lseek(fd, hole, os.SEEK_DATA) <= 6 * MIB
    with pytest.raises(OSError) as caught:
        os.lseek(fd, 9 * MIB, os.SEEK_DATA)
    assert caught.value.errno == errno.ENXIO
    os.close(fd)


def test_a_range_is_copied_within_the_mount(mnt: Path, fd: int) -> None:
    os.pwrite(fd, b"begin", 0)
    with (mnt / "copy").open("w+b") as copy:
        assert os.copy_file_range(fd, copy.fileno(), 2 * MIB, 0, 100) == MIB
        copy.seek(100)
        assert copy.read(6) == b"beginx"
        assert os.fstat(copy.fileno()).st_size == MIB + 100
    os.close(fd)


def test_a_file_without_a_name_can_get_one(mnt: Path) -> None:
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    assert os.fstat(fd).st_nlink == 0
    assert list(mnt.iterdir()) == []
    give_name(fd, mnt)
    os.close(fd)
    assert (mnt / "named").read_bytes() == b"content"
    assert (mnt / "named").stat().st_nlink == 1


def test_a_file_without_a_name_that_may_not_get_one_goes_with_its_last_close(mnt: Path) -> None:
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    os.write(fd, b"content")
    with pytest.raises(OSError) as caught:
        give_name(fd, mnt)
    assert caught.value.errno == errno.ENOENT
    os.close(fd)
    assert list(mnt.iterdir()) == []
