"""What programs rely on, one by one, on a real mount that has no worker."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.mounted import Mounted
from tests.fs.oracle import renameat2

pytestmark = pytest.mark.fuse

NOBODY = 65534
_OPEN_FILE_LOCK = 37  # F_OFD_SETLK, linux/fcntl.h: Python 3.11 lacks the name


def fails_with(code: int, operation: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        operation()
    assert caught.value.errno == code


def as_nobody(action: Callable[[], object]) -> int:
    """Does something as a user without rights, in a process of its own; gives the errno, or 0."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def open_to_all(path: Path) -> None:
    """Lets everybody through to a directory, and write there."""
    for directory in path.parents:
        if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
    path.chmod(0o1777)


@pytest.fixture
def open_mnt(mnt: Path) -> Path:
    """An empty directory of a mount in which everybody may make files."""
    open_to_all(mnt)
    return mnt


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
    open_to_all(mounted.path)
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
