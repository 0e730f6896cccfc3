"""Who may do what on a real mount, and whose things are."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.callers import NOBODY, as_nobody, fails_with, let_everybody_in
from tests.fs.mounted import Mounted

pytestmark = pytest.mark.fuse


@pytest.fixture
def open_mnt(mnt: Path) -> Path:
    """An empty directory of a mount in which everybody may make files."""
    let_everybody_in(mnt)
    return mnt


@pytest.mark.root
def test_files_belong_to_who_made_them_and_the_kernel_checks_permissions(open_mnt: Path) -> None:
    def make() -> None:
        os.umask(0o027)
        (open_mnt / "file").touch()
        (open_mnt / "directory").mkdir()

    assert as_nobody(make) == 0
    for name, mode in (("file", 0o640), ("directory", 0o750)):
        found = (open_mnt / name).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, mode)
    secret = open_mnt / "secret"
    secret.touch(0o600)
    assert as_nobody(secret.read_bytes) == errno.EACCES
    assert as_nobody(secret.unlink) == errno.EPERM  # the directory is sticky
    assert as_nobody(lambda: secret.chmod(0o777)) == errno.EPERM


@pytest.mark.root
def test_setgid_directories_hand_their_group_down(open_mnt: Path) -> None:
    shared = open_mnt / "shared"
    shared.mkdir()
    os.chown(shared, 0, 1234)
    shared.chmod(0o2777)
    assert as_nobody((shared / "file").touch) == 0
    assert as_nobody((shared / "below").mkdir) == 0
    assert (shared / "file").stat().st_gid == 1234
    below = (shared / "below").stat()
    assert (below.st_uid, below.st_gid, bool(below.st_mode & stat.S_ISGID)) == (NOBODY, 1234, True)


@pytest.mark.root
@pytest.mark.parametrize(
    "write",
    [
        lambda program: os.write(os.open(program, os.O_WRONLY), b"x"),
        lambda program: os.truncate(program, 1),
        lambda program: os.open(program, os.O_WRONLY | os.O_TRUNC),
    ],
    ids=["write", "truncate", "open"],
)
def test_setuid_bits_go_when_another_user_writes(open_mnt: Path, write: Callable[[Path], object]) -> None:
    program = open_mnt / "program"
    program.write_bytes(b"#!/bin/sh")
    program.chmod(0o6777)
    assert stat.S_IMODE(program.stat().st_mode) == 0o6777
    assert as_nobody(lambda: write(program)) == 0
    assert stat.S_IMODE(program.stat().st_mode) == 0o777


def test_a_mount_can_be_read_only(start: Callable[..., Mounted]) -> None:
    mounted = start(read_only=True)
    (mounted.place.tree / "file").write_bytes(b"content")
    assert (mounted.path / "file").read_bytes() == b"content"
    fails_with(errno.EROFS, (mounted.path / "new").touch)
