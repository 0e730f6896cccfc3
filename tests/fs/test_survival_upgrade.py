"""A mount passes from one keeper to the next, an upgrade, and the job does not notice."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuse_tier.mount.claim import is_held, read_record
from fuse_tier.mount.table import mount_at
from tests.fs.mounted import Mounted, Place, eventually, mounts_below
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse

Start = Callable[..., Mounted]


BOTH = pytest.mark.parametrize(
    "mode",
    [pytest.param("on", id="passthrough", marks=pytest.mark.root), pytest.param("off", id="plain")],
    indirect=True,
)


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "auto"))


@pytest.fixture
def mounted(start: Start, mode: str) -> Mounted:
    return start(passthrough=mode)


def successor(start: Start, place: Place, mode: str, **parameters: Any) -> Mounted:
    """Starts a successor of the keeper there is, whatever comes of it."""
    return start(passthrough=mode, take_over=place.keeper_socket, **parameters)


@contextmanager
def visiting(place: Place) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(place.keeper_socket)
        connection.settimeout(20)
        yield connection


def state_of(place: Place) -> dict[str, Any]:
    with visiting(place) as connection:
        return dict(json.loads(connection.recv(1 << 16)))


def is_refused(place: Place, message: bytes) -> bool:
    """Whether who says this is turned out."""
    with visiting(place) as connection:
        connection.recv(1 << 16)
        connection.send(message)
        return connection.recv(1 << 16) == b""


@BOTH
def test_a_job_sees_no_error_while_its_mount_is_upgraded_and_daemons_die(
    mounted: Mounted, start: Start, place: Place, mode: str, rng: random.Random, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    before = mounts_below(mounted.path)
    command = [sys.executable, "-m", "tests.fs.torture", str(mounted.path), str(4 << 20)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdin and job.stdout
        assert json.loads(job.stdout.readline()) == {"ready": True}
        for _ in range(3):
            mounted.upgrade()
            time.sleep(rng.uniform(0.0, 0.3))
            mounted.kill_daemon()
        job.stdin.close()
        told = json.loads(job.stdout.readline())
    assert told["errors"] == []
    assert told["rounds"] > 0
    assert mounts_below(mounted.path) == before
    mounted.unmount()
    assert mounted.wait() == 0
    assert not os.path.exists(place.keeper_socket)


@BOTH
def test_what_is_open_and_what_is_gone_goes_to_the_successor(
    mounted: Mounted, start: Start, place: Place, mode: str
) -> None:
    held = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    gone = os.open(mounted.path / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(mounted.path / "gone")
    mounted.upgrade()
    assert os.pwrite(held, b"content", 0) == 7
    assert os.pwrite(gone, b"content", 0) == 7
    assert os.pread(gone, 10, 0) == b"content"
    assert os.fstat(gone).st_nlink == 0
    os.close(held)
    os.close(gone)
    assert (mounted.path / "file").read_bytes() == b"content"


def test_a_successor_says_who_keeps_the_mount_now(mounted: Mounted, start: Start, place: Place, mode: str) -> None:
    state = state_of(place)
    assert (state["pid"], state["kept"], state["generation"]) == (mounted.pid, False, 0)
    new = successor(start, place, mode, fsync="peer")
    state = state_of(place)
    assert (state["pid"], state["generation"], state["settings"]["fsync"]) == (new.pid, 1, "peer")
    record = read_record(place.volume.keeper)
    assert record is not None
    assert (record.pid, record.mountpoint) == (new.pid, str(mounted.path))
    assert is_held(place.volume.keeper)


@pytest.mark.parametrize("when", ["asks", "has all"])
def test_a_successor_that_dies_before_it_serves_leaves_the_mount_to_the_old_keeper(
    mounted: Mounted, place: Place, when: str, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("mount.not_handed_over")
    (mounted.path / "file").write_text("content")
    held = os.open(mounted.path / "file", os.O_RDWR)
    with visiting(place) as connection:
        connection.send(json.dumps({"hand_over": 1}).encode())
        said: dict[str, Any] = {}
        while when == "has all" and "form" not in said:
            message, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
            said = json.loads(message)
            for fd in fds:
                os.close(fd)
            assert said.get("deposits", 1) == 1
    assert os.pwrite(held, b"CONTENT", 0) == 7
    os.close(held)
    assert os.listdir(mounted.path) == ["file"]
    state = state_of(place)
    assert (state["pid"], state["reason"]) == (mounted.pid, "")
    assert mounted.process.poll() is None


def test_a_successor_whose_daemon_dies_before_it_serves_leaves_the_mount_to_the_old_keeper(
    mounted: Mounted, start: Start, place: Place, mode: str, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("mount.not_handed_over", "daemon.failed")
    (mounted.path / "file").write_text("content")
    # As code that is broken: its daemon finds no tree where it was told that there is one.
    failed = successor(start, place, mode, ram_root="/nonexistent")
    assert failed.wait() == 1
    assert (mounted.path / "file").read_text() == "content"
    state = state_of(place)
    assert state["pid"] == mounted.pid


def test_a_successor_that_says_nothing_is_not_waited_for_for_long(
    mounted: Mounted, place: Place, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("mount.not_handed_over")
    with visiting(place) as connection:
        connection.send(json.dumps({"hand_over": 1}).encode())
        assert os.listdir(mounted.path) == []


def test_a_successor_of_another_form_or_for_another_place_is_refused(
    mounted: Mounted, start: Start, place: Place, mode: str
) -> None:
    assert is_refused(place, json.dumps({"hand_over": 999}).encode())
    other = successor(start, place, mode, mountpoint=str(place.base))
    assert "it has default/job/rank-0 at" in other.said["error"]["message"]
    assert os.listdir(mounted.path) == []


def test_nonsense_from_a_visitor_harms_nobody(mounted: Mounted, place: Place) -> None:
    for nonsense in (b"nonsense", b"[]", b"{}", b"\xff" * 70_000):
        assert is_refused(place, nonsense)
    assert os.listdir(mounted.path) == []


def test_many_visitors_harm_nobody(mounted: Mounted, place: Place) -> None:
    crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(40)]
    for visitor in crowd:
        visitor.connect(place.keeper_socket)
    assert os.listdir(mounted.path) == []
    for visitor in crowd:
        visitor.close()
    assert state_of(place)["pid"] == mounted.pid


def test_a_volume_is_served_by_one_keeper_at_a_time(mounted: Mounted, start: Start, place: Place, mode: str) -> None:
    (place.base / "other").mkdir()
    second = start(passthrough=mode, mountpoint=str(place.base / "other"))
    assert second.said["error"]["type"] == "IdentityBusy"
    assert f"at {mounted.path}, by process {mounted.pid}" in second.said["error"]["message"]
    assert mount_at(str(place.base / "other")) is None


def test_a_volume_is_free_again_when_its_keeper_is_dead(mounted: Mounted, start: Start, place: Place) -> None:
    mounted.process.kill()
    mounted.wait()
    record = read_record(place.volume.keeper)
    assert record is not None
    assert (record.mountpoint, record.device) == (str(mounted.path), mount_at(str(mounted.path)).device)  # type: ignore[union-attr]
    (place.base / "other").mkdir()
    again = start(mountpoint=str(place.base / "other"))
    assert again.said["serving"]
    again.process.send_signal(signal.SIGTERM)
    assert again.wait() == 0
    assert read_record(place.volume.keeper) is None


def test_a_term_signal_that_came_before_the_handover_ends_the_mount_after_it(
    mounted: Mounted, start: Start, place: Place, mode: str
) -> None:
    held = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    mounted.process.send_signal(signal.SIGTERM)
    eventually(lambda: mount_at(str(mounted.path)) is None, "the end of the mount's sight")
    mounted.upgrade()
    assert os.pwrite(held, b"still", 0) == 5
    os.close(held)
    assert mounted.wait() == 0
    assert Path(place.tree, "file").read_bytes() == b"still"
