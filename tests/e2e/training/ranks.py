"""A job of several processes, one for each rank, each at a mount of its own.

What a step leaves in each process is told by its digest: a run that resumes has to come to the same bits again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.localcluster.ports import free_ports
from tests.e2e.jobs import A_NODE_DIED, mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

JOB = "default/llama"
RANKS = (0, 1)
# Seconds pass between saves, as in a real job: a step that is saved while another is copied may be passed over.
EVERY = 50

EXAMPLES = Path(__file__).parents[3] / "examples"
_RUN_SECONDS = 240.0
_STEP = re.compile(r"^step (\d+): loss \S+, sha256 ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """An example; ``environment`` is what a process has of its rank and a free port of this machine."""

    script: str
    options: tuple[str, ...]
    environment: Callable[[int, int], Mapping[str, str]]
    alike: bool = False  # all find their mounts at one path, as pods do


class Process:
    """One rank's process. Made by ``running``."""

    def __init__(self, command: Command, rank: int, port: int, mount: Path, output: Path) -> None:
        self.mount = mount
        self._output = output
        with output.open("wb") as words:
            self._process = subprocess.Popen(
                [*_program(command, mount), *command.options],
                env=os.environ | command.environment(rank, port),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def says(self, text: str) -> None:
        """Returns when it has said a line that begins so. Fails the test when it ends before."""

        async def has_said() -> bool:
            ended = self._process.poll()
            if f"\n{text}" in f"\n{self._words()}":
                return True
            if ended is not None:
                pytest.fail(f"ended with {ended} before it said {text!r}:\n{self._words()}", pytrace=False)
            return False

        await until(has_said, _RUN_SECONDS)

    def digests(self) -> dict[int, str]:
        """What each step has left here."""
        return {int(step): digest for step, digest in _STEP.findall(self._words())}

    def start(self) -> int:
        """From which step it has gone on."""
        found = re.search(r"^start at step (\d+)$", self._words(), re.MULTILINE)
        assert found, self._words()
        return int(found[1])

    def stand_still(self) -> None:
        """It does nothing any more, and so saves nothing."""
        self._process.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        """As the loss of its node does."""
        self._process.kill()
        await trio.to_thread.run_sync(self._process.wait)

    def _words(self) -> str:
        return self._output.read_text(errors="replace")


def _program(command: Command, mount: Path) -> list[str]:
    script = str(EXAMPLES / command.script)
    if not command.alike:
        return [sys.executable, script, str(mount)]
    as_a_pod = 'mount --bind "$0" /mnt && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", as_a_pod, str(mount), sys.executable, script, "/mnt"]


@asynccontextmanager
async def running(command: Command, mounts: Sequence[Path], output: Path) -> AsyncIterator[list[Process]]:
    """A process for each mount, told who it is as a CSI plugin does; all are killed when this is left."""
    (port,) = free_ports(1)
    for rank, mount in enumerate(mounts):
        (mount / "rank.tmp").write_text(f"{rank}\n127.0.0.1:{port}\n")
        (mount / "rank.tmp").rename(mount / "jax-init-info.txt")
    processes = [
        Process(command, rank, port, mount, output.with_suffix(f".{rank}")) for rank, mount in enumerate(mounts)
    ]
    try:
        yield processes
    finally:
        with trio.CancelScope(shield=True):
            for process in processes:
                await process.kill()


async def mounted(cluster: LocalCluster, nodes: list[LocalNode]) -> list[Path]:
    """The mounts of all ranks; those that are there already stay."""
    mounts = [cluster.mountpoint(f"{node.name}-rank{rank}") for rank, node in enumerate(nodes)]
    for rank, (node, mount) in enumerate(zip(nodes, mounts, strict=True)):
        if not mount.is_mount():
            await mount_when_free(node, mount, f"{JOB}/{rank}", world_size=len(RANKS))
    return mounts


async def run_until_it_has_saved(job: list[Process], nodes: list[LocalNode], tier: str) -> list[dict[int, str]]:
    """Until two more steps than it began with are saved, and copied; then it stands still. Gives the digests."""
    for process in job:
        await process.says("start at step")
    for process in job:
        await process.says(f"step {job[0].start() + 2 * EVERY + 5}:")
    for process in job:
        process.stand_still()
    for rank, node in enumerate(nodes):
        await node.wait(f"{JOB}/{rank}", tier, 60)
    return [process.digests() for process in job]


async def goes_on_from_one_step_whatever_nodes_are_lost(
    command: Command, make_cluster: Clusters, output: Path, expected_logs: ExpectedLogs, *, in_place: bool
) -> None:
    """Runs a job of two that loses a node, then all of them. Fails unless it comes to the same bits each time.

    ``in_place``: the rank that keeps its node keeps its mount too, as when only its container is started again.
    """
    cluster = await make_cluster("a", "b", "c", ram_size="512MiB")
    nodes = [cluster["a"], cluster["b"]]
    async with running(command, await mounted(cluster, nodes), output / "first") as job:
        before = await run_until_it_has_saved(job, nodes, "peer")
        assert {process.start() for process in job} == {0}
    expected_logs.allow(*A_NODE_DIED, r"restart\..*")
    await nodes[1].lose_ram()
    if not in_place:
        await nodes[0].unmount(job[0].mount)
    nodes[1] = cluster["c"]
    async with running(command, await mounted(cluster, nodes), output / "second") as job:
        again = await run_until_it_has_saved(job, nodes, "bucket")
    _check_same_bits(before, again, {process.start() for process in job})

    # All are lost: the bucket has it.
    await cluster.lose_all_ram()
    for node in cluster:
        await node.start()
    async with running(command, await mounted(cluster, nodes), output / "third") as job:
        for process in job:
            await process.says("start at step")
        for process in job:
            await process.says(f"step {max(again[0]) + 1}:")
        last = [process.digests() for process in job]
    _check_same_bits(again, last, {process.start() for process in job})


def _check_same_bits(before: list[dict[int, str]], after: list[dict[int, str]], starts: set[int]) -> None:
    """All began from one step, which had been saved, and what followed left the same bits again."""
    (start,) = starts
    assert start >= min(before[0]) - 1 + EVERY
    for known, found in zip(before, after, strict=True):
        both = known.keys() & found.keys()
        assert both
        assert {step: known[step] for step in both} == {step: found[step] for step in both}
