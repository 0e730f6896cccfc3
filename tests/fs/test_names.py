"""Names, links and listings on a real mount that has no worker."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.fs.callers import as_nobody, fails_with, let_everybody_in
from tests.fs.mounted import Mounted
from tests.fs.oracle import renameat2

pytestmark = pytest.mark.fuse


def test_a_removed_working_directory_still_has_attributes(mnt: Path) -> None:
    (mnt / "directory").mkdir()
    fd = os.open(mnt / "directory", os.O_PATH)
    (mnt / "directory").rmdir()
    assert os.fstat(fd).st_nlink == 0
    fails_with(errno.ENOENT, lambda: os.mkdir("below", dir_fd=fd))
    os.close(fd)


def test_hard_links_are_one_file_and_counted(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"1")
    (mnt / "b").hardlink_to(mnt / "a")
    (mnt / "directory").mkdir()
    (mnt / "directory" / "c").hardlink_to(mnt / "b")
    assert {(mnt / name).stat().st_ino for name in ("a", "b", "directory/c")} == {(mnt / "a").stat().st_ino}
    assert (mnt / "a").stat().st_nlink == 3
    (mnt / "a").unlink()
    (mnt / "b").write_bytes(b"2")
    assert (mnt / "directory" / "c").read_bytes() == b"2"
    (mnt / "b").unlink()
    assert (mnt / "directory" / "c").stat().st_nlink == 1


def test_symlinks_keep_their_target_whatever_it_is(mnt: Path) -> None:
    for number, target in enumerate(["/etc/passwd", "../../..", "missing", "x" * 4095]):
        (mnt / f"link{number}").symlink_to(target)
        assert os.readlink(mnt / f"link{number}") == target
    os.utime(mnt / "link0", ns=(5, 6), follow_symlinks=False)
    assert (mnt / "link0").lstat().st_mtime_ns == 6


@pytest.mark.root
def test_a_symlink_put_into_the_tree_from_outside_is_never_followed_by_the_daemon(mounted: Mounted) -> None:
    let_everybody_in(mounted.path)
    (mounted.path / "directory").mkdir()
    (mounted.path / "directory" / "file").write_bytes(b"inside")
    (mounted.path / "directory").chmod(0o777)
    (mounted.path / "directory" / "file").chmod(0o666)
    outside = mounted.place.base / "outside"
    outside.mkdir(0o700)  # the daemon may enter it, who asks may not
    (outside / "file").write_bytes(b"secret")
    # What the kernel takes for a directory and a file become links behind its back.
    tree = mounted.place.tree
    (tree / "directory").rename(tree / "moved")
    (tree / "directory").symlink_to(outside)
    (tree / "moved" / "file").unlink()
    (tree / "moved" / "file").symlink_to(outside / "file")
    for name in ("file", "new"):
        path = mounted.path / "directory" / name
        as_nobody(lambda path=path: path.write_bytes(b"overwritten"))  # type: ignore[misc]
        assert as_nobody(lambda path=path: os._exit(0 if b"secret" in path.read_bytes() else 1)) != 0  # type: ignore[misc]
    assert (outside / "file").read_bytes() == b"secret"
    assert [path.name for path in outside.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [b"\xff" * 255, "ü".encode() * 127, b" \n\t*'\"\\", b"-rf", b"..."])
def test_names_are_bytes(mnt: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(mnt), name)
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(mnt)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name


def test_a_name_of_256_bytes_is_too_long(mnt: Path) -> None:
    fails_with(errno.ENAMETOOLONG, (mnt / ("n" * 256)).touch)


def test_trees_deeper_than_a_path_can_say_work(mnt: Path) -> None:
    depth = 100
    fd = os.open(mnt, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(b"d" * 200, dir_fd=fd)
        below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    handle = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=fd)
    os.write(handle, b"deep down")
    os.close(handle)
    (mnt / ("d" * 200)).rename(mnt / "renamed")
    handle = os.open("file", os.O_RDONLY, dir_fd=fd)
    assert os.read(handle, 100) == b"deep down"
    os.close(handle)
    os.close(fd)


def test_more_directories_than_there_are_descriptors_for(mnt: Path) -> None:
    for number in range(600):
        (mnt / f"directory{number}").mkdir()
        (mnt / f"directory{number}" / "file").write_bytes(b"%d" % number)
    (mnt / "directory0").rename(mnt / "directory599" / "moved")
    for number in range(1, 600):
        assert (mnt / f"directory{number}" / "file").read_bytes() == b"%d" % number
    (mnt / "directory599" / "moved" / "file").write_bytes(b"moved")
    (mnt / "directory1" / "file").rename(mnt / "directory599" / "moved" / "file")
    assert (mnt / "directory599" / "moved" / "file").read_bytes() == b"1"


def test_exclusive_creation_succeeds_once(mnt: Path) -> None:
    outcomes: list[bool] = []

    def create() -> None:
        try:
            os.close(os.open(mnt / "one", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            outcomes.append(True)
        except FileExistsError:
            outcomes.append(False)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_rename_can_refuse_to_replace_and_can_exchange(mnt: Path) -> None:
    (mnt / "file").write_bytes(b"file")
    (mnt / "directory").mkdir()
    (mnt / "directory" / "inside").write_bytes(b"inside")
    one, other = os.fsencode(mnt / "file"), os.fsencode(mnt / "directory")
    fails_with(errno.EEXIST, lambda: renameat2(one, other, 1))
    renameat2(one, other, 2)
    assert (mnt / "directory").read_bytes() == b"file"
    assert (mnt / "file" / "inside").read_bytes() == b"inside"
    unknown = 8
    fails_with(errno.EINVAL, lambda: renameat2(other, os.fsencode(mnt / "new"), unknown))


def test_a_directory_with_open_files_below_can_be_renamed(mnt: Path) -> None:
    (mnt / "step.tmp" / "rank").mkdir(parents=True)
    with (mnt / "step.tmp" / "rank" / "file").open("w+b") as file:
        (mnt / "step.tmp").rename(mnt / "step")
        file.write(b"after the rename")
        file.flush()
        assert (mnt / "step" / "rank" / "file").read_bytes() == b"after the rename"
        assert os.fstat(file.fileno()).st_size == 16
    fails_with(errno.ENOTEMPTY, (mnt / "step").rmdir)


def test_a_long_listing_has_every_lasting_name_once_while_others_come_and_go(mnt: Path) -> None:
    lasting = {f"lasting-{number}" for number in range(6000)}
    for name in lasting:
        os.mknod(mnt / name)
    for number in range(500):
        (mnt / f"passing-{number}").touch()
    seen: list[str] = []
    with os.scandir(mnt) as entries:
        for position, entry in enumerate(entries):
            seen.append(entry.name)
            if position % 20 == 0 and position // 20 < 500:
                (mnt / f"passing-{position // 20}").unlink()
                (mnt / f"new-{position}").touch()
    assert len(seen) == len(set(seen))
    assert lasting <= set(seen)
    assert {name for name in seen if name.startswith(".")} == set()


def test_a_directory_read_again_from_its_start_shows_what_is_new(mnt: Path) -> None:
    (mnt / "old").touch()
    fd = os.open(mnt, os.O_RDONLY)
    assert os.listdir(fd) == ["old"]
    (mnt / "new").touch()
    assert sorted(os.listdir(fd)) == ["new", "old"]
    os.close(fd)
