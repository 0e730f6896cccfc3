"""Orbax's ReplicatorCheckpointManager, in two JAX processes on two nodes, against the file protocol.

What a step leaves in each process is told by its digest: a run that resumes has to come to the same bits again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.localcluster.ports import free_ports
from tests.e2e.jobs import A_NODE_DIED, mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(600)]

JOB = "default/llama"
RANKS = (0, 1)
_PROGRAM = Path(__file__).parents[3] / "examples/train_replicator.py"
_RUN_SECONDS = 240.0
# Seconds pass between saves, as in a real job: a step that is saved while another is copied may be passed over.
_EVERY = 50
_OPTIONS = ("--save-every", str(_EVERY), "--backup-every", str(_EVERY), "--width", "256", "--steps", "100000")
_STEP = re.compile(r"^step (\d+): loss \S+, sha256 ([0-9a-f]{64})$", re.MULTILINE)
# How many processes there are JAX asks the cluster; of those that it knows, Slurm's answer is a few variables.
_SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": str(len(RANKS)),
    "SLURM_LOCALID": "0",
}
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} | _SLURM


class Process:
    """One rank's process. Made by ``running``."""

    def __init__(self, rank: int, mount: Path, output: Path) -> None:
        self.mount = mount
        self._output = output
        with output.open("wb") as words:
            self._process = subprocess.Popen(
                [sys.executable, str(_PROGRAM), str(mount), *_OPTIONS],
                env=os.environ | _ENVIRONMENT | {"SLURM_PROCID": str(rank)},
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


@asynccontextmanager
async def running(mounts: list[Path], output: Path) -> AsyncIterator[list[Process]]:
    """A process for each mount, told who it is as a CSI plugin does; all are killed when this is left."""
    (port,) = free_ports(1)
    for rank, mount in enumerate(mounts):
        (mount / "rank.tmp").write_text(f"{rank}\n127.0.0.1:{port}\n")
        (mount / "rank.tmp").rename(mount / "jax-init-info.txt")
    processes = [Process(rank, mount, output.with_suffix(f".{rank}")) for rank, mount in enumerate(mounts)]
    try:
        yield processes
    finally:
        with trio.CancelScope(shield=True):
            for process in processes:
                await process.kill()


async def mounted(cluster: LocalCluster, nodes: list[LocalNode]) -> list[Path]:
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
        await process.says(f"step {job[0].start() + 2 * _EVERY + 5}:")
    for process in job:
        process.stand_still()
    for rank, node in enumerate(nodes):
        await node.wait(f"{JOB}/{rank}", tier, 60)
    return [process.digests() for process in job]


async def test_a_job_of_two_processes_goes_on_from_one_step_to_the_same_bits_whatever_nodes_are_lost(
    make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", ram_size="512MiB")
    nodes = [cluster["a"], cluster["b"]]
    async with running(await mounted(cluster, nodes), tmp_path / "first") as job:
        before = await run_until_it_has_saved(job, nodes, "peer")
        assert {process.start() for process in job} == {0}
    # Rank 1 loses its node; rank 0's container is started again in its place.
    expected_logs.allow(*A_NODE_DIED, r"restart\..*")
    await nodes[1].lose_ram()
    nodes[1] = cluster["c"]
    async with running(await mounted(cluster, nodes), tmp_path / "second") as job:
        again = await run_until_it_has_saved(job, nodes, "bucket")
    assert_same_bits(before, again, {process.start() for process in job})

    # All are lost: the bucket has it.
    await cluster.lose_all_ram()
    for node in cluster:
        await node.start()
    async with running(await mounted(cluster, nodes), tmp_path / "third") as job:
        for process in job:
            await process.says("start at step")
        for process in job:
            await process.says(f"step {max(again[0]) + 1}:")
        last = [process.digests() for process in job]
    assert_same_bits(again, last, {process.start() for process in job})


def assert_same_bits(before: list[dict[int, str]], after: list[dict[int, str]], starts: set[int]) -> None:
    """All began from one step, which had been saved, and what followed left the same bits again."""
    (start,) = starts
    assert start >= min(before[0]) - 1 + _EVERY
    for known, found in zip(before, after, strict=True):
        both = known.keys() & found.keys()
        assert both
        assert {step: known[step] for step in both} == {step: found[step] for step in both}
