from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from fuse_tier.errors import InvalidRequest, MountError
from fuse_tier.identity import Identity
from fuse_tier.mount.table import mount_at
from fuse_tier.ram.layout import Layout
from tests.harness.logs import ExpectedLogs
from tests.node.conftest import StartNode, is_running, make_volume

VOLUME = Identity("default", "job", "0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_node_says_when_it_is_ready_and_ends_in_order(start_node: StartNode, number: signal.Signals) -> None:
    node = start_node()
    assert node.line() == f"node a is ready: socket {node.socket}, control 127.0.0.1:7460, metrics off"
    node.tell(number)
    assert await node.ended() == 0
    assert node.events[1:] == ["SIGTERM"], "the worker ends in order too"
    assert not is_running(node.workers[0])
    assert not os.path.exists(f"{node.socket}.supervisor")
    assert os.path.exists(Layout(node.ram).marker), "what the RAM tier holds stays"


async def test_a_node_that_has_ended_starts_again(start_node: StartNode) -> None:
    for _ in range(2):
        node = start_node(socket=None)
        assert node.line().startswith("node a is ready")
        node.tell(signal.SIGTERM)
        assert await node.ended() == 0


async def test_a_killed_worker_is_started_again(start_node: StartNode, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("worker.ended")
    node = start_node()
    node.line()
    os.kill(node.workers[0], signal.SIGKILL)
    await node.happened("started", times=2)
    assert await node.call("mounts") == []
    node.tell(signal.SIGTERM)
    assert await node.ended() == 0


@pytest.mark.parametrize("status", [1, 2])
async def test_a_worker_that_refuses_to_start_ends_the_node_with_its_status(
    start_node: StartNode, status: int
) -> None:
    node = start_node(f"refuses-with-{status}")
    assert node.line() == "the node could not start: its replication worker ended; the message above says why"
    assert await node.ended() == status
    assert len(node.workers) == 1


async def test_a_worker_that_was_ready_once_is_started_again_whatever_it_says(
    start_node: StartNode, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.ended")
    node = start_node("refuses-later")
    node.line()
    os.kill(node.workers[0], signal.SIGKILL)
    await node.happened("started", times=3)


async def test_the_first_signal_lets_the_worker_drain_and_the_second_one_does_not(start_node: StartNode) -> None:
    node = start_node("drains")
    node.line()
    node.tell(signal.SIGTERM)
    await node.happened("SIGTERM")
    assert node.process.poll() is None
    node.tell(signal.SIGTERM)
    assert await node.ended() == 0
    assert node.events[1:] == ["SIGTERM", "SIGTERM"]


async def test_a_worker_that_does_not_listen_is_killed_after_the_second_signal(
    start_node: StartNode, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("process.killed")
    node = start_node("deaf")
    node.line()
    node.tell(signal.SIGTERM)
    await node.happened("SIGTERM")
    node.tell(signal.SIGTERM)
    assert await node.ended() == 0
    assert not is_running(node.workers[0])


async def test_a_second_node_on_a_ram_tier_is_refused_and_the_first_goes_on(start_node: StartNode) -> None:
    first = start_node()
    first.line()
    second = start_node(ram=first.ram)
    assert second.line() == (
        f"ram.path: {first.ram} belongs to a node that runs already (pid {first.process.pid}): "
        "end that one, or give this node a RAM tier of its own"
    )
    assert await second.ended() == 2
    assert second.workers == []
    assert await first.call("mounts") == []


async def test_a_second_node_on_a_socket_is_refused_and_touches_nothing(
    start_node: StartNode, memory_path: Path
) -> None:
    first = start_node()
    first.line()
    other_ram = memory_path / "other"
    second = start_node(socket=first.socket, ram=str(other_ram), name="b")
    assert second.line() == (
        f"socket: {first.socket}.supervisor is in use by a process that runs already (pid {first.process.pid}): "
        "end that one, or choose another path"
    )
    assert await second.ended() == 2
    assert not other_ram.exists()
    assert await first.call("mounts") == []


async def test_what_is_no_socket_is_not_replaced(start_node: StartNode, place: Path) -> None:
    file = place / "precious"
    file.write_text("mine")
    node = start_node(socket=str(file))
    assert node.line() == f"socket: {file} is there and is no socket: remove it, or choose another path"
    assert await node.ended() == 2
    assert file.read_text() == "mine"


async def test_a_socket_that_was_left_behind_is_replaced(start_node: StartNode, place: Path) -> None:
    for suffix in ("", ".supervisor", ".volumes"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{place}/left.sock{suffix}")
    node = start_node(socket=f"{place}/left.sock")
    assert node.line().startswith("node a is ready")


async def test_a_call_that_makes_no_sense_is_refused_and_breaks_nothing(start_node: StartNode) -> None:
    node = start_node()
    node.line()
    with pytest.raises(InvalidRequest, match="mountpoint is missing or no text"):
        await node.call("unmount")
    with pytest.raises(InvalidRequest, match="there is no call 'dance' here"):
        await node.call("dance")
    with pytest.raises(MountError, match=r"mountpoint 'relative' is no absolute path"):
        await node.call("mount", identity=str(VOLUME), mountpoint="relative", read_only=False)
    assert await node.call("mounts") == []


@pytest.mark.fuse
async def test_mounts_outlive_the_worker_and_end_with_the_node(
    start_node: StartNode, mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.ended")
    node = start_node()
    node.line()
    make_volume(node.ram, VOLUME)
    await node.call("mount", identity=str(VOLUME), mountpoint=str(mountpoint), read_only=False)
    (mountpoint / "file").write_text("written")
    os.kill(node.workers[0], signal.SIGKILL)
    await node.happened("started", times=2)
    (mountpoint / "file").write_text("written again")
    (listed,) = await node.call("mounts")
    assert is_running(listed["pid"])
    node.tell(signal.SIGTERM)
    assert await node.ended() == 0
    assert mount_at(str(mountpoint)) is None
    assert not is_running(listed["pid"])
    assert (Path(Layout(node.ram).volume(VOLUME).tree) / "file").read_text() == "written again"


@pytest.mark.fuse
async def test_the_end_of_a_node_does_not_wait_for_who_uses_its_mounts(
    start_node: StartNode, mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"volume\.cut_off", r"mount\..*")
    node = start_node()
    node.line()
    make_volume(node.ram, VOLUME)
    await node.call("mount", identity=str(VOLUME), mountpoint=str(mountpoint), read_only=False)
    held = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    os.write(held, b"written")
    node.tell(signal.SIGTERM)
    assert await node.ended() == 0
    assert mount_at(str(mountpoint)) is None
    with pytest.raises(OSError, match="Transport endpoint"):
        os.fsync(held)
    os.close(held)
    assert (Path(Layout(node.ram).volume(VOLUME).tree) / "file").read_text() == "written"


async def test_a_configuration_without_passthrough_holds_for_mounts_and_is_told(
    start_node: StartNode, mountpoint: Path
) -> None:
    node = start_node(more="passthrough: off\n")
    assert node.line().startswith("node a is ready")
    make_volume(node.ram, VOLUME)
    await node.call("mount", identity=str(VOLUME), mountpoint=str(mountpoint), read_only=False)
    (listed,) = await node.call("mounts")
    assert (listed["passthrough"], listed["plain_reason"]) == (False, "the configuration says `passthrough: off`")
    node.tell(signal.SIGTERM)
    assert await node.ended() == 0
