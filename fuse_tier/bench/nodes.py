"""Real nodes with a mounted volume, for benchmarks of what users get."""

from __future__ import annotations

import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from prometheus_client.parser import text_string_to_metric_families

from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalCluster, LocalNode, local_cluster
from fuse_tier.localcluster.node import WORKER
from fuse_tier.localcluster.processes import peak_megabytes

IDENTITY = "default/bench/0"
_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.5
_METRICS_SECONDS = 10.0
_SENT = "fuse_tier_bulk_bytes_total"

T = TypeVar("T")


@asynccontextmanager
async def mounted(
    directory: Path, names: list[str], *, bucket: bool = False, **settings: Any
) -> AsyncIterator[tuple[LocalCluster, Path]]:
    """A cluster of nodes of these names, and where ``a`` of them has a volume mounted.

    ``settings`` are arguments of ``local_cluster``, and keys of every node's ``node.yaml``.
    """
    async with local_cluster(directory, names, bucket=bucket, **settings) as cluster:
        mount = cluster.mountpoint("a")
        await cluster["a"].mount(IDENTITY, mount)
        yield cluster, mount


async def settled(node: LocalNode, tier: str) -> None:
    """Waits until what was written so far is on a tier, and the node is quiet again."""
    await node.wait(IDENTITY, tier, _WAIT_SECONDS)


async def until_room(node: LocalNode, size_bytes: int) -> None:
    """Waits until what earlier runs left has been collected."""
    with trio.fail_after(_WAIT_SECONDS):
        while True:
            status = await node.status()
            (free,) = (tier["free_bytes"] for tier in status["tiers"] if tier["tier"] == "ram")
            if free >= size_bytes:
                return
            await trio.sleep(_POLL_SECONDS)


async def until_spares(node: LocalNode, size_bytes: int) -> None:
    """Waits until the node has pages ready for the next checkpoint, as it has when the job computes for a while."""
    with trio.fail_after(_WAIT_SECONDS):
        while True:
            (ram,) = (tier for tier in (await node.status())["tiers"] if tier["tier"] == "ram")
            if ram["spare_bytes"] >= size_bytes:
                return
            await trio.sleep(_POLL_SECONDS)


async def at_rest(node: LocalNode) -> None:
    """Waits until nothing is left that a node does when it has nothing else to do."""
    with trio.fail_after(_WAIT_SECONDS):
        while True:
            (ram,) = (tier for tier in (await node.status())["tiers"] if tier["tier"] == "ram")
            if not ram["small_pages_bytes"] and not ram["spares_wanted_bytes"]:
                return
            await trio.sleep(_POLL_SECONDS)


async def warmed(node: LocalNode) -> None:
    """Waits until a node with ``ram.warm`` has touched its memory once."""
    with trio.fail_after(_WAIT_SECONDS):
        while True:
            (ram,) = (tier for tier in (await node.status())["tiers"] if tier["tier"] == "ram")
            if ram["warmed"] is not None:
                return
            await trio.sleep(_POLL_SECONDS)


def sent_bytes(node: LocalNode) -> float:
    """How much content a node's worker has sent to peers since it was started."""
    with urllib.request.urlopen(f"http://{node.config['metrics']}/metrics", timeout=_METRICS_SECONDS) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name == _SENT]
    return sum(sample.value for sample in samples if sample.labels["direction"] == "out")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Does what blocks."""
    return await trio.to_thread.run_sync(work, *arguments)


def worker_peak_megabytes(node: LocalNode) -> float:
    """The most memory that a node's worker has had resident (VmHWM, proc(5)), in MB."""
    for pid in node.family.running(WORKER):
        return peak_megabytes(pid)
    raise FuseTierError(f"node {node.name} has no worker")
