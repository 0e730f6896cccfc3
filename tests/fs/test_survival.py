"""The daemon of a mount may be killed at any instant, and the job does not notice."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from fuse_tier.mount.table import mount_at
from tests.fs.mounted import Mounted, eventually, mounts_below
from tests.harness.logs import ExpectedLogs
from tests.harness.processes import is_running

pytestmark = pytest.mark.fuse

KILLS = 20


@pytest.fixture(autouse=True)
def deaths_are_expected(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("daemon.ended")


def test_a_job_sees_no_error_and_no_long_stall_however_often_the_daemon_is_killed(
    mounted: Mounted, rng: random.Random
) -> None:
    command = [sys.executable, "-m", "tests.fs.torture", str(mounted.path), str(8 << 20)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdin and job.stdout
        assert json.loads(job.stdout.readline()) == {"ready": True}
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.02, 0.6))
            mounted.kill_daemon()
        job.stdin.close()
        told = json.loads(job.stdout.readline())
    assert told["errors"] == []
    assert told["rounds"] > 0


def test_a_volume_lists_the_same_after_a_takeover(mounted: Mounted) -> None:
    (mounted.path / "directory").mkdir()
    (mounted.path / "directory" / "file").write_text("content")
    mounted.kill_daemon()
    assert os.listdir(mounted.path) == ["directory"]
    assert os.listdir(mounted.path / "directory") == ["file"]
    assert (mounted.path / "directory" / "file").read_text() == "content"


def test_operations_that_were_never_asked_for_before_work_after_a_takeover(mounted: Mounted) -> None:
    (mounted.path / "file").write_text("content")
    mounted.kill_daemon()
    with (mounted.path / "file").open("r+b") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 7
        os.posix_fallocate(file.fileno(), 0, 100)
    os.setxattr(mounted.path / "file", "user.mine", b"value")
    assert os.listxattr(mounted.path / "file") == ["user.mine"]


def test_a_listing_that_is_interrupted_has_each_name_once(mounted: Mounted) -> None:
    names = {f"name-{number:05}-{'x' * 100}" for number in range(3000)}
    for name in names:
        (mounted.path / name).touch()
    found = []
    with os.scandir(mounted.path) as entries:
        for position, entry in enumerate(entries):
            found.append(entry.name)
            if position in (10, 1500):
                mounted.kill_daemon()
                (mounted.path / f"later-{position}").touch()
                (mounted.path / f"later-{position}").unlink()
    assert sorted(found) == sorted(names)


def test_open_files_go_on_whatever_has_become_of_their_names(mounted: Mounted) -> None:
    (mounted.path / "a").write_bytes(b"0" * 8192)
    held = os.open(mounted.path / "a", os.O_RDWR)
    gone = os.open(mounted.path / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(mounted.path / "gone")
    appended = os.open(mounted.path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with mmap.mmap(held, 8192) as mapped:
        os.rename(mounted.path / "a", mounted.path / "b")
        for _ in range(2):
            mounted.kill_daemon()
            assert os.pwrite(held, b"held", 0) == 4
            assert os.pwrite(gone, b"gone", 0) == 4
            os.write(appended, b"line\n")
            mapped[4096:4100] = b"maps"
            mapped.flush()
            assert os.fstat(gone).st_nlink == 0
            assert os.pread(gone, 10, 0) == b"gone"
    assert (mounted.path / "b").read_bytes()[:4] == b"held"
    assert (mounted.path / "b").read_bytes()[4096:4100] == b"maps"
    assert (mounted.path / "log").read_bytes() == b"line\nline\n"
    for fd in (held, gone, appended):
        os.close(fd)


def test_locks_are_kept(mounted: Mounted) -> None:
    (mounted.path / "lock").touch()
    with (mounted.path / "lock").open("r+b") as one, (mounted.path / "lock").open("r+b") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        mounted.kill_daemon()
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_was_removed_and_is_still_held_has_attributes(mounted: Mounted) -> None:
    (mounted.path / "directory").mkdir()
    fd = os.open(mounted.path / "directory", os.O_PATH)
    (mounted.path / "directory").rmdir()
    mounted.kill_daemon()
    assert os.fstat(fd).st_nlink == 0
    with pytest.raises(FileNotFoundError):
        os.mkdir("below", dir_fd=fd)
    os.close(fd)


def test_a_mount_stays_the_only_one_and_the_same(mounted: Mounted) -> None:
    before = mounts_below(mounted.path)
    for _ in range(4):
        mounted.kill_daemon()
    os.statvfs(mounted.path)
    assert mounts_below(mounted.path) == before
    assert len(before) == 1


@pytest.mark.root
def test_a_job_in_a_namespace_of_its_own_may_be_restarted_between_two_kills(mounted: Mounted) -> None:
    def run_in_container(script: str) -> str:
        # As a container does: a mount namespace of its own, with a bind mount that hears of no other.
        command = f"mount --make-rprivate / && mkdir -p /mnt && mount --bind {mounted.path} /mnt && {script}"
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", command], check=True, capture_output=True, text=True
        ).stdout

    run_in_container("echo one > /mnt/file")
    for word in ("two", "three"):
        mounted.kill_daemon()
        assert "one" in run_in_container(f"echo {word} >> /mnt/file; cat /mnt/file")
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "read line; cat file"],
        cwd=mounted.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        mounted.kill_daemon()
        assert job.communicate("go\n")[0] == "one\ntwo\nthree\n"


def test_a_stopped_daemon_makes_its_job_wait_and_no_more(mounted: Mounted) -> None:
    stopped = mounted.daemon
    os.kill(stopped, signal.SIGSTOP)
    outcome: list[int] = []
    job = threading.Thread(target=lambda: outcome.append((mounted.path / "file").write_text("done")))
    job.start()
    job.join(0.2)
    assert outcome == []
    os.kill(stopped, signal.SIGCONT)
    job.join(10)
    assert outcome == [4]


def test_names_that_were_asked_for_before_are_found_without_the_daemon(mounted: Mounted) -> None:
    paths = [mounted.path / f"file-{number}" for number in range(100)]
    for path in paths:
        (mounted.place.tree / path.name).write_text("content")
    sizes = [path.stat().st_size for path in paths]
    stopped = mounted.daemon
    os.kill(stopped, signal.SIGSTOP)
    again: list[int] = []
    job = threading.Thread(target=lambda: again.extend(path.stat().st_size for path in paths))
    job.start()
    job.join(10)
    found = list(again)
    os.kill(stopped, signal.SIGCONT)
    job.join(10)
    assert found == sizes


def test_a_daemon_that_cannot_be_kept_running_fails_the_mount_and_nobody_hangs(
    mounted: Mounted, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("mount.given_up")
    (mounted.path / "file").touch()
    held = os.open(mounted.path / "file", os.O_RDWR)
    while mounted.process.poll() is None:
        try:
            if daemon := mounted.daemon:
                os.kill(daemon, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert mounted.wait() == 1
    for action in (lambda: os.fsync(held), lambda: os.stat(mounted.path / "other")):
        with pytest.raises(OSError) as caught:
            action()
        assert caught.value.errno == errno.ENOTCONN
    assert "10 times in a row" in mounted.place.log.read_text()
    os.close(held)


def test_the_death_of_the_keeper_ends_its_daemon_and_the_mount_is_dead(mounted: Mounted) -> None:
    daemon = mounted.daemon
    mounted.process.kill()
    mounted.wait()
    eventually(lambda: not is_running(daemon), "the end of the daemon")
    with pytest.raises(OSError) as caught:
        os.stat(mounted.path / "file")
    # The kernel may be at it still: who waits at that moment is told so.
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def test_a_term_signal_that_comes_between_two_daemons_still_ends_the_mount(mounted: Mounted) -> None:
    os.kill(mounted.daemon, signal.SIGKILL)
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.wait() == 0
    assert mount_at(str(mounted.path)) is None


def test_an_unmount_that_comes_between_two_daemons_ends_all(mounted: Mounted) -> None:
    os.kill(mounted.daemon, signal.SIGKILL)
    mounted.unmount()
    assert mounted.wait() == 0


def test_a_file_without_a_name_outlives_the_daemon_too(mounted: Mounted) -> None:
    fd = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"content")
    mounted.kill_daemon()
    directory = os.open(mounted.path, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory)
    os.close(directory)
    os.close(fd)
    assert (mounted.path / "named").read_bytes() == b"content"
