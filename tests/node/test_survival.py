"""Supervisors die, are replaced by others and by newer ones, and the jobs of their mounts do not notice."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import fuse_tier
from fuse_tier.errors import IdentityBusy, MountError
from fuse_tier.fs.version import code_version
from fuse_tier.identity import Identity
from fuse_tier.mount.table import mount_at
from tests.fs.mounted import mounts_below
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import Node, StartNode, is_running, make_volume

pytestmark = pytest.mark.fuse

VOLUME = Identity("default", "job", "0")


async def mount(node: Node, at: Path) -> None:
    await node.call("mount", identity=str(VOLUME), mountpoint=str(at), read_only=False)


async def the_mount(node: Node) -> dict[str, Any]:
    (listed,) = await node.call("mounts")
    return dict(listed)


async def gone(*pids: int) -> None:
    async def are_gone() -> bool:
        return not any(map(is_running, pids))

    await until(are_gone)


@pytest.fixture
async def node(start_node: StartNode, mountpoint: Path) -> Node:
    """A node with a volume that is mounted."""
    node = start_node()
    assert node.line().startswith("node a is ready")
    make_volume(node.ram, VOLUME)
    await mount(node, mountpoint)
    return node


@pytest.fixture
def start_again(start_node: StartNode, node: Node) -> Callable[..., Node]:
    """The next supervisor of the same node."""

    def start(**settings: Any) -> Node:
        again = start_node(ram=node.ram, socket=node.socket, **settings)
        assert again.line().startswith("node a is ready")
        return again

    return start


async def kill(node: Node) -> None:
    """The supervisor alone, whose worker dies with it."""
    node.tell(signal.SIGKILL)
    await node.ended()
    await gone(*node.workers)


@asynccontextmanager
async def job_at(mountpoint: Path) -> AsyncIterator[dict[str, Any]]:
    """A job writes all the while, and notices nothing; gives what it says at its end."""
    command = [sys.executable, "-m", "tests.fs.torture", str(mountpoint), str(1 << 20)]
    job = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdin and job.stdout
    try:
        said = b""
        while b"\n" not in said:
            said += await job.stdout.receive_some(1000)
        assert said == b'{"ready": true}\n'
        told: dict[str, Any] = {}
        yield told
        await job.stdin.aclose()
        told |= json.loads(b"".join([part async for part in job.stdout]))
        assert told["errors"] == []
        assert told["rounds"] > 0
    finally:
        job.kill()
        await job.wait()


def take_away(mountpoint: Path) -> None:
    subprocess.run(["fusermount3", "-u", str(mountpoint)], check=True, capture_output=True)


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


def copy_of_the_package(directory: Path) -> Path:
    """The code, in another version: one line more."""
    shutil.copytree(
        Path(fuse_tier.__file__).parent, directory / "fuse_tier", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (directory / "fuse_tier" / "fs" / "files.py").open("a") as file:
        file.write("# another version\n")
    (directory / "tests").symlink_to(Path(__file__).parents[1])
    return directory


async def test_the_mounts_of_an_older_version_are_upgraded_while_their_jobs_write(
    start_node: StartNode, mountpoint: Path, tmp_path: Path
) -> None:
    old = start_node(code=copy_of_the_package(tmp_path))
    assert old.line().startswith("node a is ready")
    make_volume(old.ram, VOLUME)
    await mount(old, mountpoint)
    before, mounts = await the_mount(old), mounts_below(mountpoint)
    assert before["version"] != code_version()
    async with job_at(mountpoint):
        await kill(old)
        new = start_node(ram=old.ram, socket=old.socket)

        async def is_upgraded() -> bool:
            return bool((await the_mount(new))["version"] == code_version())

        assert new.line().startswith("node a is ready")
        await until(is_upgraded)
        now = await the_mount(new)
    assert now["pid"] != before["pid"]
    assert now["state"] == "serving"
    assert mounts_below(mountpoint) == mounts
    await gone(before["pid"], before["daemon"])
    await new.call("unmount", mountpoint=str(mountpoint))
    await gone(now["pid"])


async def test_other_settings_hold_for_mounts_that_are_there_too(
    node: Node, start_again: Callable[..., Node], mountpoint: Path
) -> None:
    before = await the_mount(node)
    await kill(node)
    again = start_again(sizes="{'*.bin': 1MiB}")

    async def is_upgraded() -> bool:
        return bool((await the_mount(again))["pid"] != before["pid"])

    await until(is_upgraded)
    await gone(before["pid"])
    await again.call("unmount", mountpoint=str(mountpoint))


async def test_a_supervisor_that_dies_in_the_middle_of_an_upgrade_takes_the_new_keeper_along(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, place: Path
) -> None:
    before = await the_mount(node)
    await kill(node)
    pid_file = place / "pid"
    program = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    upgrading = start_again(sizes="{'*.bin': 1MiB}", keeper=program)

    async def has_begun() -> bool:
        return pid_file.exists() and pid_file.read_text() != ""

    await until(has_begun)
    await kill(upgrading)
    await gone(int(pid_file.read_text()))
    (mountpoint / "file").write_text("written")
    assert await the_mount(start_again()) == before


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


@pytest.mark.parametrize("keeper", ["raise SystemExit(7)", "print(1)"])
async def test_an_upgrade_that_fails_leaves_the_old_keeper_at_work(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, keeper: str, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.not_upgraded")
    before = await the_mount(node)
    await kill(node)
    again = start_again(sizes="{'*.bin': 1MiB}", keeper=keeper)
    (mountpoint / "file").write_text("written")
    assert await the_mount(again) == before
    await again.call("unmount", mountpoint=str(mountpoint))  # takes its turn after the upgrade


async def test_what_is_no_keeper_is_cleared_away_at_the_start(start_node: StartNode, place: Path) -> None:
    (place / "node.sock.mounts").mkdir()
    (place / "node.sock.mounts" / "0123456789abcdef").touch()
    node = start_node(socket=str(place / "node.sock"))
    assert node.line().startswith("node a is ready")
    assert os.listdir(place / "node.sock.mounts") == []


@pytest.mark.root
async def test_the_mount_table_stays_as_it_is_whatever_dies_and_whoever_comes(
    node: Node, start_again: Callable[..., Node], mountpoint: Path, rng: random.Random, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    mounts, lines = mounts_below(mountpoint), 0

    def run_in_container() -> None:
        # As a container does: a mount namespace of its own, with a bind mount that hears of no other.
        script = f"mount --make-rprivate / && mount --bind {mountpoint} /mnt && echo line >> /mnt/log"
        subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True)

    async with job_at(mountpoint):
        for number in range(3):
            before = await the_mount(node)
            dying = rng.sample([node.process.pid, before["daemon"]], 2)
            for pid in dying:
                os.kill(pid, signal.SIGKILL)
            await node.ended()
            await trio.to_thread.run_sync(run_in_container)
            node = start_again(sizes=f"{{'*.bin': {number + 1}MiB}}")
            os.kill((await the_mount(node))["daemon"], signal.SIGKILL)
            await trio.to_thread.run_sync(run_in_container)
            lines += 2
            assert mounts_below(mountpoint) == mounts
    assert (mountpoint / "log").read_text() == "line\n" * lines
    await node.call("unmount", mountpoint=str(mountpoint))
    assert mounts_below(mountpoint) == []


@pytest.mark.chaos
@pytest.mark.root
@pytest.mark.timeout(600)
async def test_a_job_notices_none_of_many_deaths_restarts_and_upgrades(
    node: Node,
    start_again: Callable[..., Node],
    mountpoint: Path,
    rng: random.Random,
    expected_logs: ExpectedLogs,
    record_property: Callable[[str, object], None],
) -> None:
    # A supervisor, or the first daemon of a new keeper, may die in the middle of a handover.
    expected_logs.allow("daemon.ended", "mount.not_handed_over", "volume.not_upgraded")
    before, sizes = mounts_below(mountpoint), 1
    blows = dict.fromkeys(["daemon", "supervisor", "both", "upgrade", "stop"], 0)
    async with job_at(mountpoint) as told:
        for _ in range(60):
            blow = rng.choice(list(blows))
            blows[blow] += 1
            daemon = (await the_mount(node))["daemon"]
            with suppress(ProcessLookupError):  # it died, or another keeper took over, a moment ago
                if blow in ("daemon", "both") and daemon:
                    os.kill(daemon, signal.SIGKILL)
                if blow == "stop" and daemon:
                    os.kill(daemon, signal.SIGSTOP)
                    await trio.sleep(rng.uniform(0, 0.1))
                    os.kill(daemon, signal.SIGCONT)
            if blow in ("supervisor", "both", "upgrade"):
                sizes += blow == "upgrade"
                await kill(node)
                node = start_again(sizes=f"{{'*.bin': {sizes}MiB}}")
            await trio.sleep(rng.uniform(0, 0.6))
    assert mounts_below(mountpoint) == before
    record_property("blows", blows)
    record_property("job", told)
    print(blows, told)  # noqa: T201 - the figures, shown with -rP
    await node.call("unmount", mountpoint=str(mountpoint))
