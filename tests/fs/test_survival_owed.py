"""A daemon dies between what it does for an open and its answer: the next one answers, and nothing stays open."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fs.mounted import PATIENCE_SECONDS, Mounted, Place, eventually
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse

_OPENER = """
import os, sys
print("opening", flush=True)
fd = os.open(sys.argv[1], int(sys.argv[2]), 0o600)
print(os.write(fd, b"written"), flush=True)
sys.stdin.read()
"""
OPENS = [
    pytest.param("there", os.O_RDWR, id="open"),
    pytest.param("there", os.O_WRONLY | os.O_TRUNC | os.O_DIRECT, id="truncate"),
    pytest.param("new", os.O_RDWR | os.O_CREAT | os.O_EXCL, id="create"),
    pytest.param(".", os.O_RDWR | os.O_TMPFILE, id="tmpfile"),
]
ONCE = pytest.param(["after"], id="answer-owed")
TWICE = pytest.param(["before", "after"], id="answer-owed-to-a-request-that-came-again")


@pytest.fixture(
    params=[pytest.param("on", marks=pytest.mark.root, id="passthrough"), pytest.param("off", id="plain")]
)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Where the first daemon that is to live waits, once the kernel gives requests out again."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


@pytest.fixture
def mounted(
    place: Place, start: Callable[..., Mounted], gate: Path, deaths: list[str], mode: str, expected_logs: ExpectedLogs
) -> Mounted:
    expected_logs.allow("daemon.ended")
    (place.tree / "there").write_bytes(b"content")
    return start(program=("tests.fs.dying", str(gate), *deaths), passthrough=mode)


@contextmanager
def opening(mounted: Mounted, name: str, flags: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _OPENER, str(mounted.path / name), str(flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as opener:
        try:
            assert opener.stdout and opener.stdout.readline() == "opening\n"
            yield opener
        finally:
            opener.kill()


def nothing_is_open(mounted: Mounted) -> bool:
    return os.getxattr(mounted.path, "user.fuse_tier.state") == b"sealed"


@pytest.mark.parametrize("deaths", [ONCE])
@pytest.mark.parametrize(("name", "flags"), OPENS)
def test_a_file_is_closed_whose_opener_is_killed_before_the_next_daemon_reads(
    mounted: Mounted, gate: Path, name: str, flags: int
) -> None:
    with opening(mounted, name, flags) as opener:
        with gate.open("wb"):  # the kernel gives out again what was not answered, and nobody reads yet
            opener.kill()
            opener.wait(PATIENCE_SECONDS)
        eventually(lambda: nothing_is_open(mounted), "the end of what was opened")


@pytest.mark.parametrize("deaths", [TWICE])
@pytest.mark.parametrize(("name", "flags"), OPENS)
def test_an_open_succeeds_once_however_often_its_daemon_dies(
    mounted: Mounted, gate: Path, name: str, flags: int
) -> None:
    with opening(mounted, name, flags) as opener:
        gate.open("wb").close()
        assert opener.stdin and opener.stdout
        readable, _, _ = select.select([opener.stdout], [], [], PATIENCE_SECONDS)
        assert readable, "it still waits"
        assert opener.stdout.readline() == "7\n"
        assert not nothing_is_open(mounted)
        opener.stdin.close()
        assert opener.wait(PATIENCE_SECONDS) == 0
        eventually(lambda: nothing_is_open(mounted), "the end of what was opened")
    if name != ".":
        assert (mounted.path / name).read_bytes() == b"written"
