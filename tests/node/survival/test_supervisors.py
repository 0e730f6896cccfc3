"""Supervisors die, are replaced by others, and the jobs of their mounts do not notice."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_tier.errors import IdentityBusy, MountError
from fuse_tier.mount.table import mount_at
from tests.fs.mounted import mounts_below
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import Node, StartNode, is_running
from tests.node.survival.conftest import VOLUME, gone, job_at, kill, mount, take_away, the_mount

pytestmark = pytest.mark.fuse

pytestmark = pytest.mark.fuse


async def test_a_mount_outlives_its_supervisor_and_is_the_next_ones(
    node: Node, start_again: Callable[..., Node], mountpoint: Path
) -> None:
    before = await the_mount(node)
    mounts = mounts_below(mountpoint)
    held = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    await kill(node)
    os.write(held, b"written while there was no supervisor")
    again = start_again()
    assert await the_mount(again) == before
    with pytest.raises(IdentityBusy, match=f"is mounted on this node already, at {mountpoint}"):
        await mount(again, mountpoint.parent)
    with pytest.raises(MountError, match="in use"):
        await again.call("unmount", mountpoint=str(mountpoint))
    assert mounts_below(mountpoint) == mounts
    os.close(held)
    assert await again.call("unmount", mountpoint=str(mountpoint)) == {"identity": str(VOLUME)}
    assert mount_at(str(mountpoint)) is None
    await gone(before["pid"], before["daemon"])
    assert await again.call("mounts") == []
    await mount(again, mountpoint)
    assert (mountpoint / "file").read_text() == "written while there was no supervisor"


async def test_a_supervisor_and_a_daemon_may_die_together(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    before = await the_mount(node)
    held = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    node.tell(signal.SIGKILL)
    os.kill(before["daemon"], signal.SIGKILL)
    await node.ended()
    os.write(held, b"written")
    os.close(held)
    now = await the_mount(start_again())
    assert (now["pid"], now["state"], now["restarts"]) == (before["pid"], "serving", 1)
    assert now["daemon"] != before["daemon"]


async def test_a_supervisor_and_a_keeper_that_die_together_leave_a_dead_mount_that_is_told_and_can_be_replaced(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed")
    (mountpoint / "file").write_text("written")
    before = await the_mount(node)
    node.tell(signal.SIGKILL)
    os.kill(before["pid"], signal.SIGKILL)
    await node.ended()
    await gone(before["pid"], before["daemon"])
    with pytest.raises(OSError) as caught:
        (mountpoint / "file").write_text("lost, were it not refused")
    assert caught.value.errno == errno.ENOTCONN
    again = start_again()
    now = await the_mount(again)
    assert (now["state"], now["daemon"]) == ("failed", 0)
    assert now["reason"] == "its keeper ended: every access answers ENOTCONN until it is unmounted"
    with pytest.raises(MountError, match="holds the dead mount of default/job/0"):
        await mount(again, mountpoint)
    await again.call("unmount", mountpoint=str(mountpoint))
    await mount(again, mountpoint)
    assert (mountpoint / "file").read_text() == "written"


async def test_a_dead_mount_that_was_taken_away_before_the_next_supervisor_is_forgotten(
    node: Node, start_again: Callable[..., Node], mountpoint: Path
) -> None:
    before = await the_mount(node)
    node.tell(signal.SIGKILL)
    os.kill(before["pid"], signal.SIGKILL)
    await gone(before["pid"], before["daemon"])
    take_away(mountpoint)
    again = start_again()
    assert await again.call("mounts") == []
    assert os.listdir(f"{node.socket}.mounts") == [], "the socket that was left is removed"
    await mount(again, mountpoint)


async def test_a_mount_that_ended_between_two_supervisors_is_forgotten(
    node: Node, start_again: Callable[..., Node], mountpoint: Path
) -> None:
    before = await the_mount(node)
    await kill(node)
    take_away(mountpoint)
    await gone(before["pid"])
    again = start_again()
    assert await again.call("mounts") == []
    await mount(again, mountpoint)


@pytest.mark.chaos  # the pauses between ten deaths
async def test_a_mount_that_was_given_up_between_two_supervisors_says_why(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended", "mount.given_up", "volume.failed")
    before = await the_mount(node)
    await kill(node)
    children = Path(f"/proc/{before['pid']}/task/{before['pid']}/children")
    while is_running(before["pid"]):
        try:
            os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        except (OSError, IndexError):
            continue
    now = await the_mount(start_again())
    assert now["state"] == "failed"
    assert "10 times in a row, each soon after its start" in now["reason"]
    assert now["reason"].endswith("every access answers ENOTCONN until it is unmounted")


async def test_an_adopted_mount_ends_in_order_with_its_node(
    node: Node, start_again: Callable[..., Node], mountpoint: Path
) -> None:
    before = await the_mount(node)
    (mountpoint / "file").write_text("written")
    await kill(node)
    again = start_again()
    again.tell(signal.SIGTERM)
    assert await again.ended() == 0
    assert mount_at(str(mountpoint)) is None
    assert not is_running(before["pid"])
    assert not is_running(before["daemon"])


async def test_an_adopted_mount_in_use_is_cut_off_with_its_node(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.cut_off", r"mount\..*")
    before = await the_mount(node)
    await kill(node)
    again = start_again()
    held = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    again.tell(signal.SIGTERM)
    assert await again.ended() == 0
    assert mount_at(str(mountpoint)) is None
    await gone(before["pid"], before["daemon"])
    with pytest.raises(OSError, match="Transport endpoint"):
        os.fsync(held)
    os.close(held)


async def test_a_supervisor_can_end_and_leave_its_mounts_to_the_next(
    node: Node, start_again: Callable[..., Node], mountpoint: Path
) -> None:
    before = await the_mount(node)
    async with job_at(mountpoint):
        node.tell(signal.SIGUSR1)
        assert await node.ended() == 0
        assert not is_running(node.workers[0])
        assert node.events[1:] == [], "a worker that ends in order gives up the claims on what is mounted"
        again = start_again()
        assert await the_mount(again) == before


@pytest.mark.chaos
async def test_a_keeper_that_does_not_answer_is_watched_all_the_same(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.keeper_silent")
    before = await the_mount(node)
    await kill(node)
    os.kill(before["pid"], signal.SIGSTOP)
    again = start_again()
    now = await the_mount(again)
    assert (now["pid"], now["daemon"], now["state"]) == (before["pid"], 0, "serving")
    (mountpoint / "file").write_text("its daemon serves")
    os.kill(before["pid"], signal.SIGCONT)

    async def has_answered() -> bool:
        return bool((await the_mount(again))["daemon"] == before["daemon"])

    await until(has_answered)


async def test_what_is_no_keeper_is_cleared_away_at_the_start(start_node: StartNode, place: Path) -> None:
    (place / "node.sock.mounts").mkdir()
    (place / "node.sock.mounts" / "0123456789abcdef").touch()
    node = start_node(socket=str(place / "node.sock"))
    assert node.line().startswith("node a is ready")
    assert os.listdir(place / "node.sock.mounts") == []
