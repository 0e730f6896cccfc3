"""Files that the kernel reads and writes by itself: all that have one open have it so, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fs.filling import small_tmpfs
from tests.fs.mounted import PATIENCE_SECONDS, Mounted, eventually
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_ROOM = 16 << 20
_LARGE = 8 << 20


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A small tmpfs of its own, whose room nobody else takes."""
    with small_tmpfs(tmp_path / "memory", _ROOM) as path:
        yield path


@pytest.fixture
def on(start: Callable[..., Mounted]) -> Mounted:
    mounted = start(passthrough="on")
    if not mounted.said.get("passthrough"):
        pytest.skip("needs a kernel with FUSE passthrough")
    return mounted


def needs_the_daemon(mounted: Mounted, fd: int) -> bool:
    """Whether a write to an open file goes through the daemon."""
    os.pwrite(fd, b"x", 0)  # the first one after a change of the mode asks for the file's capabilities
    stopped = mounted.daemon
    os.kill(stopped, signal.SIGSTOP)
    try:
        writer = threading.Thread(target=lambda: os.pwrite(fd, b"x", 0))
        writer.start()
        writer.join(0.5)
        waits = writer.is_alive()
    finally:
        os.kill(stopped, signal.SIGCONT)
    writer.join(PATIENCE_SECONDS)
    return waits


def test_what_is_appended_to_is_written_through_the_daemon_unless_such_files_are_large(on: Mounted) -> None:
    appends = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    (on.path / "step_1.bin").write_bytes(bytes(1 << 20))
    waits = {}
    for name in ("job.log", "step_1.bin"):
        fd = os.open(on.path / name, appends)
        try:
            waits[name] = needs_the_daemon(on, fd)
        finally:
            os.close(fd)
    assert waits == {"job.log": True, "step_1.bin": False}


def test_all_that_have_a_file_open_have_it_in_the_same_way_until_the_last_has_closed_it(on: Mounted) -> None:
    path = on.path / "file"
    path.touch()
    path.chmod(0o4755)  # the kernel would leave the bit in place, wrote it by itself
    through_us = os.open(path, os.O_RDWR)
    path.chmod(0o644)
    as_well = os.open(path, os.O_RDWR)
    assert needs_the_daemon(on, through_us)
    assert needs_the_daemon(on, as_well)
    os.close(through_us)
    as_before = os.open(path, os.O_RDONLY)
    os.close(as_before)
    os.close(as_well)
    # Closes are told to the daemon when they are over, in their order.
    eventually(lambda: os.getxattr(on.path, "user.fuse_tier.state") == b"sealed", "the last close")
    os.truncate(path, 0)  # else it is likely to stay small
    by_itself = os.open(path, os.O_RDWR)
    path.chmod(0o4755)
    too = os.open(path, os.O_RDWR)
    path.chmod(0o644)  # while it has the bit, each write asks whether that must go
    assert not needs_the_daemon(on, by_itself)
    assert not needs_the_daemon(on, too)
    os.close(by_itself)
    os.close(too)


@pytest.mark.parametrize("deaths", [0, 2])
def test_the_room_of_a_file_that_was_removed_comes_back_with_its_last_close(
    mounted: Mounted, deaths: int, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    free = os.statvfs(mounted.path).f_bfree
    for _ in range(3):  # what one leaves behind, the next one would have no room for
        held = [os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2)]
        assert os.write(held[0], bytes(_LARGE)) == _LARGE
        for _ in range(deaths):
            mounted.kill_daemon()
        (mounted.path / "file").unlink()
        for fd in held:
            os.close(fd)
        eventually(lambda: os.statvfs(mounted.path).f_bfree >= free - 64, "all of the room")
