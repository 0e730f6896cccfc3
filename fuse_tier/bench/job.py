"""The benchmark of a job that comes back: real nodes, one of them lost, until each rank has its files."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import trio

from fuse_tier.bench.frame import Figure, Row
from fuse_tier.bench.nodes import in_thread
from fuse_tier.bench.places import write_files
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalCluster, LocalNode, local_cluster

_LIMIT_SECONDS = 1.0
_RANKS = 4
_FILES = 16
_FILE_BYTES = 16 << 20
_RUNS = 5
_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.1


async def _restarts(directory: Path) -> Figure:
    """Of each run another node is lost, and its rank comes to the one that was lost before.

    Pods are made again long after a node's lease is over: so that is waited for first. From then on it is measured
    until all of the job's volumes are mounted, and the names in each have been listed.
    """
    names = [f"n{number}" for number in range(_RANKS + 1)]
    settings: dict[str, Any] = {"ram_size": "2GiB", "bucket": False, "settle": "50ms"}
    async with local_cluster(directory / "c", names, **settings) as cluster:
        places = [cluster[name] for name in names[:_RANKS]]
        spare = cluster[names[_RANKS]]
        mounts = [cluster.mountpoint(f"first-{rank}") for rank in range(_RANKS)]
        await _mount_all(places, mounts)
        seconds = []
        for number in range(_RUNS):
            step = f"step_{number + 1}"
            await _save(places, mounts, step)
            lost = number % _RANKS
            gone = places[lost]
            await gone.lose_ram()
            for rank, node in enumerate(places):
                if rank != lost:
                    await node.unmount(mounts[rank])
            await _until_gone(cluster, gone.name)
            places[lost] = spare
            mounts = [cluster.mountpoint(f"{step}-{rank}") for rank in range(_RANKS)]
            begun = time.perf_counter()
            await _mount_all(places, mounts)
            found = [await in_thread(os.listdir, mount / step) for mount in mounts]
            seconds.append(time.perf_counter() - begun)
            if any(len(one) != _FILES for one in found):
                raise FuseTierError(f"a rank has not all files of {step}: {list(map(len, found))}")
            spare = gone
            await gone.start()
        return Figure(statistics.median(seconds), _LIMIT_SECONDS)


async def _mount_all(places: list[LocalNode], mounts: list[Path]) -> None:
    async def mount(rank: int) -> None:
        await places[rank].mount(f"default/job/{rank}", mounts[rank], world_size=_RANKS)

    async with trio.open_nursery() as nursery:
        for rank in range(len(places)):
            nursery.start_soon(mount, rank)


async def _save(places: list[LocalNode], mounts: list[Path], step: str) -> None:
    """As jobs do; what they saved before goes."""
    for mount in mounts:
        await in_thread(write_files, mount / f"{step}.tmp", _FILES, _FILE_BYTES)
        await in_thread(os.rename, mount / f"{step}.tmp", mount / step)
        for name in await in_thread(os.listdir, mount):
            if name != step:
                await in_thread(shutil.rmtree, mount / name)
    for rank, node in enumerate(places):
        await node.wait(f"default/job/{rank}", "peer", _WAIT_SECONDS)


async def _until_gone(cluster: LocalCluster, name: str) -> None:
    coordinator = cluster.coordinator
    if coordinator is None:
        raise FuseTierError("the cluster has no coordinator")
    with trio.fail_after(_WAIT_SECONDS):
        while True:
            if not any(one.alive for one in (await coordinator.picture()).members if one.node == name):
                return
            await trio.sleep(_POLL_SECONDS)


ROWS = (Row("job.restart", "s", "limit", _restarts),)
