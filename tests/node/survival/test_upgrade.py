"""Mounts go to newer code and other settings while their jobs write."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

import fuse_tier
import tests
from fuse_tier.fs.version import code_version
from tests.fs.mounted import mounts_below
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import Node, StartNode, make_volume
from tests.node.survival.conftest import VOLUME, gone, job_at, kill, mount, the_mount

pytestmark = pytest.mark.fuse


def copy_of_the_package(directory: Path) -> Path:
    """The code, in another version: one line more."""
    shutil.copytree(
        Path(fuse_tier.__file__).parent, directory / "fuse_tier", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (directory / "fuse_tier" / "fs" / "files.py").open("a") as file:
        file.write("# another version\n")
    (directory / "tests").symlink_to(Path(tests.__file__).parent)
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
