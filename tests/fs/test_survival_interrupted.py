"""Who waits for the mount can be interrupted and killed, also while its daemon dies."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fs.mounted import PATIENCE_SECONDS, Mounted, eventually
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse

# Says what became of its open: a signal that only interrupts it, or the death that nobody tells.
_OPENER = """
import os, signal, sys
class Interrupted(Exception): pass
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGUSR1, interrupt)
print("opening", flush=True)
try:
    os.open(sys.argv[1], os.O_RDWR)
    print("opened", flush=True)
except Interrupted:
    print("interrupted", flush=True)
"""


@pytest.fixture(autouse=True)
def deaths_are_expected(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("daemon.ended")


@pytest.fixture
def mounted(start: Callable[..., Mounted]) -> Mounted:
    return start()


@pytest.fixture
def elsewhere(mounted: Mounted) -> Path:
    """A file whose content is not here, so that its open waits: for a worker that never comes."""
    (mounted.path / "elsewhere").write_bytes(b"")
    os.truncate(mounted.path / "elsewhere", 7)
    live = mounted.place.tree / "elsewhere"
    marker = os.path.join(mounted.place.volume.remote, str(live.stat().st_ino))
    os.link(live, f"{marker}.file")
    os.symlink(f"bucket/{'0' * 32}-7", marker)
    return mounted.path / "elsewhere"


@contextmanager
def opening(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _OPENER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as opener:
        try:
            assert opener.stdout
            assert opener.stdout.readline() == "opening\n"
            # fs/fuse/dev.c
            eventually(lambda: Path(f"/proc/{opener.pid}/wchan").read_text() == "request_wait_answer", "its wait")
            yield opener
        finally:
            opener.kill()


def said(opener: subprocess.Popen[str]) -> str:
    assert opener.stdout
    readable, _, _ = select.select([opener.stdout], [], [], PATIENCE_SECONDS)
    assert readable, "it still waits"
    return opener.stdout.readline().strip()


@pytest.mark.parametrize("deaths", [0, 2])
def test_who_waits_can_be_interrupted_however_often_the_daemon_died(
    mounted: Mounted, elsewhere: Path, deaths: int
) -> None:
    with opening(elsewhere) as opener:
        for _ in range(deaths):
            mounted.kill_daemon()
        opener.send_signal(signal.SIGUSR1)
        assert said(opener) == "interrupted"


def test_who_was_interrupted_just_before_the_daemon_died_is_not_forgotten(mounted: Mounted, elsewhere: Path) -> None:
    with opening(elsewhere) as opener:
        os.kill(mounted.daemon, signal.SIGSTOP)  # it has read the request, and does not hear of the signal
        opener.send_signal(signal.SIGUSR1)
        mounted.kill_daemon()
        assert said(opener) == "interrupted"


@pytest.mark.parametrize("stopped", [False, True])
def test_who_waits_can_be_killed_while_the_daemon_dies(mounted: Mounted, elsewhere: Path, *, stopped: bool) -> None:
    with opening(elsewhere) as opener:
        if stopped:
            os.kill(mounted.daemon, signal.SIGSTOP)
        opener.kill()
        mounted.kill_daemon()
        assert opener.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert os.listdir(mounted.path) == ["elsewhere"]


def test_who_asks_while_nobody_reads_can_be_killed(mounted: Mounted) -> None:
    (mounted.path / "file").touch()
    os.kill(mounted.daemon, signal.SIGSTOP)
    with opening(mounted.path / "file") as opener:
        opener.kill()
        assert opener.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    mounted.kill_daemon()
    assert os.listdir(mounted.path) == ["file"]


def test_whoever_is_killed_with_the_daemon_leaves_no_writer(mounted: Mounted, elsewhere: Path) -> None:
    for _ in range(3):
        with opening(elsewhere) as opener:
            opener.kill()
            mounted.kill_daemon()
            opener.wait(PATIENCE_SECONDS)
    assert os.getxattr(mounted.path, "user.fuse_tier.state") == b"sealed", "nothing counts as being written"
