"""However a mount ends: what was written is there, and no process and no mount is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fuse_tier.mount.mountpoint import abort_connection
from fuse_tier.mount.table import mount_at
from tests.fs.mounted import Mounted, eventually
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse


def nothing_is_left(mounted: Mounted, daemon: int) -> bool:
    return not Path(f"/proc/{daemon}").exists() and mount_at(str(mounted.path)) is None


@pytest.mark.parametrize(
    "command",
    [["fusermount3", "-u"], ["umount"], ["umount", "--lazy"]],
    ids=" ".join,
)
@pytest.mark.root
def test_an_unmount_ends_all(mounted: Mounted, command: list[str]) -> None:
    (mounted.path / "file").write_text("written")
    daemon = mounted.daemon
    subprocess.run([*command, str(mounted.path)], check=True)
    assert mounted.wait() == 0
    assert nothing_is_left(mounted, daemon)
    assert (mounted.place.tree / "file").read_text() == "written"


def test_a_mount_taken_out_of_sight_serves_its_users_until_the_last_has_gone(mounted: Mounted) -> None:
    held = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    daemon = mounted.daemon
    subprocess.run(["fusermount3", "-u", "-z", str(mounted.path)], check=True)
    os.write(held, b"still")
    assert os.fstat(held).st_size == 5
    assert mounted.process.poll() is None
    os.close(held)
    assert mounted.wait() == 0
    assert nothing_is_left(mounted, daemon)


def test_a_term_signal_ends_a_mount_that_nobody_uses(mounted: Mounted) -> None:
    (mounted.path / "file").write_text("written")
    daemon = mounted.daemon
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.wait() == 0
    assert nothing_is_left(mounted, daemon)


def test_a_term_signal_lets_who_has_files_open_finish(mounted: Mounted) -> None:
    held = os.open(mounted.path / "file", os.O_WRONLY | os.O_CREAT)
    mounted.process.send_signal(signal.SIGTERM)
    eventually(lambda: mount_at(str(mounted.path)) is None, "the mount out of sight")
    for _ in range(10):
        os.write(held, b"x" * 4096)
    os.fsync(held)
    os.close(held)
    assert mounted.wait() == 0
    assert (mounted.place.tree / "file").stat().st_size == 40960


def test_a_second_term_signal_cuts_them_off(mounted: Mounted, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("mount.cut_short")
    held = os.open(mounted.path / "file", os.O_WRONLY | os.O_CREAT)
    mounted.process.send_signal(signal.SIGTERM)
    eventually(lambda: mount_at(str(mounted.path)) is None, "the mount out of sight")
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.wait() == 0
    with pytest.raises(OSError) as caught:
        os.fsync(held)
    assert caught.value.errno == errno.ENOTCONN
    os.close(held)


@pytest.mark.root
def test_an_abort_frees_everybody_and_is_told(mounted: Mounted, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("mount.aborted")
    held = os.open(mounted.path / "file", os.O_WRONLY | os.O_CREAT)
    daemon = mounted.daemon
    abort_connection(str(mounted.path))
    assert mounted.wait() == 1
    with pytest.raises(OSError) as caught:
        os.fsync(held)
    assert caught.value.errno == errno.ENOTCONN
    os.close(held)
    assert nothing_is_left(mounted, daemon)


def test_operations_in_flight_finish_before_the_end(mounted: Mounted) -> None:
    outcomes: list[int] = []

    def write_many() -> None:
        for number in range(200):
            with (mounted.path / f"file-{number}").open("wb") as file:
                outcomes.append(file.write(b"x" * 10_000))
            if number == 20:
                begun.set()

    begun = threading.Event()
    cwd = os.open(mounted.path, os.O_RDONLY)
    job = threading.Thread(target=_tolerating(write_many))
    job.start()
    begun.wait(20)
    mounted.process.send_signal(signal.SIGTERM)
    job.join(60)
    os.close(cwd)
    assert mounted.wait() == 0
    assert len(outcomes) > 20
    # The later ones went into the bare directory below: the path no longer led to the volume.
    for number in range(20):
        assert (mounted.place.tree / f"file-{number}").stat().st_size == 10_000


def _tolerating(action: Callable[[], None]) -> Callable[[], None]:
    def tolerant() -> None:
        with suppress(FileNotFoundError):
            action()

    return tolerant
