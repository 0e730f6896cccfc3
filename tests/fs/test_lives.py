"""Who is held at the first look of a container that was started again in its place."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.ram import lives
from fuse_tier.wire.channel import Arguments
from tests.fs.jobs import job
from tests.fs.mounted import PATIENCE_SECONDS, Mounted, Place
from tests.fs.worker import running_worker
from tests.harness.containers import Pod, pods

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.cgroups]

SAVE = "import os, sys; os.mkdir(sys.argv[1])"


@pytest.fixture
def pod(memory_path: Path) -> Iterator[Pod]:
    with pods(memory_path, 1) as (made,):
        yield made


@pytest.fixture
def place(place: Place, pod: Pod) -> Place:
    """Where kubelet has a pod's volume, whose containers are told apart."""
    pod.mountpoint.mkdir(parents=True)
    lives.begin(place.volume)
    return replace(place, mountpoint=pod.mountpoint)


async def status(process: subprocess.Popen[bytes]) -> int:
    """What it ends with."""
    return await job(lambda: process.wait(PATIENCE_SECONDS))


@pytest.mark.parametrize("command", [("ls",), ("mkdir", "-p", "step_2")], ids=["looks", "makes"])
async def test_who_is_held_can_be_killed_and_the_job_begins_again_all_the_same(
    mounted: Mounted, pod: Pod, command: tuple[str, ...]
) -> None:
    may_go_on = trio.Event()

    async def begin_again(arguments: Arguments) -> dict[str, Any]:
        await may_go_on.wait()
        return {}

    async with running_worker(mounted.place.socket) as worker:
        worker.answers["begin_again"] = begin_again
        await worker.heard("hello")
        before = pod.container()
        await before.run(SAVE, str(mounted.path / "step_1"))
        await pod.end(before)
        container = pod.container()
        held = container.start("env", "-C", str(mounted.path), *command)
        await worker.heard("begin_again")
        held.send_signal(signal.SIGKILL)
        assert await status(held) == -signal.SIGKILL
        assert not may_go_on.is_set()
        looks_again = container.start("test", "-d", str(mounted.path / "step_1"))
        may_go_on.set()
        assert await status(looks_again) == 0
    assert [name for name, _ in worker.calls].count("begin_again") == 1
