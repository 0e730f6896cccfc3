"""The benchmarks. Their names are fixed: scripts read them."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import trio

from fuse_tier.bench import bare
from fuse_tier.bench.bucket_rows import BUCKET_ROWS
from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.nodes import in_thread, mounted, settled, until_room, until_spares, worker_peak_megabytes
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, warm, write_file, write_files
from fuse_tier.errors import FuseTierError

_DEMO_LIMIT_SECONDS = 60.0
_MEMORY_LIMIT_MB = 300.0


async def _demo_seconds(directory: Path) -> Figure:
    async def once() -> float:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "fuse_tier.cli", "demo", "--json"]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode:
            raise FuseTierError(f"fuse-tier demo failed: {done.stderr.decode(errors='replace').strip()}")
        return time.perf_counter() - begun

    async def limit() -> float:
        return _DEMO_LIMIT_SECONDS

    return await alternating(once, limit)


async def _snapshot_to_peer(directory: Path) -> Figure:
    with tmpfs(directory, 8 * GIB) as plain:
        await in_thread(warm, plain, 7 * GIB)  # also what the nodes will take
        await in_thread(write_files, plain / "source", 8, GIB // 8)
        sources = sorted((plain / "source").iterdir())
        keep: dict[str, Any] = {"keep": {"ram": 1}, "encryptPeerTraffic": False}
        async with mounted(directory / "c", ["a", "b"], ram_size="5GiB", **keep) as (cluster, mount):
            steps = itertools.count()

            async def replicate() -> float:
                step = next(steps)
                for node in cluster:
                    await until_room(node, GIB + GIB // 2)
                    if step:
                        await until_spares(node, GIB)
                await in_thread(write_files, mount / f"step_{step}", 8, GIB // 8)
                begun = time.perf_counter()
                await settled(cluster["a"], "peer")
                seconds = time.perf_counter() - begun
                if step:
                    await in_thread(shutil.rmtree, mount / f"step_{step - 1}")
                    await settled(cluster["a"], "peer")
                return seconds

            async def copy() -> float:
                await in_thread(warm, plain, GIB + GIB // 2)  # the host took back what lay free while ours rested
                seconds: float = await in_thread(bare.copy_into_new, sources, plain / "target")
                return seconds

            return await alternating(replicate, copy)


async def _worker_memory(directory: Path) -> Figure:
    """The highest that any worker came to; a peak needs no second run."""
    async with mounted(directory / "c", ["a", "b"], ram_size="6GiB", bucket=True) as (cluster, mount):
        await in_thread(write_files, mount / "small", 10_000, 4 << 10)
        await settled(cluster["a"], "peer")
        await settled(cluster["a"], "bucket")
        peaks = [worker_peak_megabytes(node) for node in cluster]
    async with mounted(directory / "d", ["a", "b"], ram_size="6GiB") as (cluster, mount):
        await in_thread(write_file, mount / "large", 4 * GIB, os.urandom(BLOCK_BYTES))
        await settled(cluster["a"], "peer")
        peaks += [worker_peak_megabytes(node) for node in cluster]
    return Figure(max(peaks), _MEMORY_LIMIT_MB)


ROWS = (
    Row("demo.seconds", "s", "limit", _demo_seconds),
    Row("peer.snapshot", "s", "sendfile and splice, not hashed", _snapshot_to_peer),
    Row("worker.memory", "MB", "limit", _worker_memory),
    *BUCKET_ROWS,
)
