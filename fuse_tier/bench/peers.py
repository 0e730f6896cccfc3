"""The benchmarks of what peers cost the node that they run on: its memory, and the job's speed."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import trio

from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.bench.nodes import in_thread, mounted, settled, until_room, worker_peak_megabytes
from fuse_tier.bench.places import BLOCK_BYTES, GIB, write_file, write_files

_MEMORY_LIMIT_MB = 200.0
_ALONE_SECONDS = 2.0

Steps = list[tuple[float, float]]
"""Begin and length of each step of a job, in seconds."""


async def _memory(directory: Path) -> Figure:
    """The highest that either worker came to; a peak needs no second run."""
    async with mounted(directory / "c", ["a", "b"], ram_size="6GiB") as (cluster, mount):
        await in_thread(write_file, mount / "large", 4 * GIB, os.urandom(BLOCK_BYTES))
        await settled(cluster["a"], "peer")
        return Figure(max(worker_peak_megabytes(node) for node in cluster), _MEMORY_LIMIT_MB)


@asynccontextmanager
async def _stepping() -> AsyncIterator[Steps]:
    """A job on the last core; its steps are there when the block has ended."""
    steps: Steps = []
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "fuse_tier.bench.stepping", str(core)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdin=PIPE, stdout=PIPE))
        await process.stdout.receive_some(1)  # it has begun
        yield steps
        await process.stdin.aclose()
        text = b"".join([chunk async for chunk in process.stdout])
        steps.extend((begun, length) for begun, length in json.loads(text))


async def _interference(directory: Path, summary: Callable[[list[float]], float]) -> Figure:
    busy, alone = [], []
    async with mounted(directory / "c", ["a", "b"], ram_size="4GiB", keep={"ram": 1}) as (cluster, mount):
        for _ in range(RUNS + 1):
            for node in cluster:
                await until_room(node, GIB + GIB // 2)
            async with _stepping() as steps:
                await trio.sleep(_ALONE_SECONDS)
                quiet_until = time.monotonic()
                await in_thread(write_files, mount / "step", 8, GIB // 8)
                busy_from = time.monotonic()
                await settled(cluster["a"], "peer")
                busy_until = time.monotonic()
            await in_thread(shutil.rmtree, mount / "step")
            await settled(cluster["a"], "peer")
            alone.append(summary([length for begun, length in steps if begun <= quiet_until]))
            busy.append(summary([length for begun, length in steps if busy_from <= begun <= busy_until]))
    return Figure(1e3 * statistics.median(busy[1:]), 1e3 * statistics.median(alone[1:]))


def _p99(lengths: list[float]) -> float:
    return statistics.quantiles(lengths, n=100)[-1]


ROWS = (
    Row("peer.memory", "MB", "limit", _memory),
    Row("job.interference", "ms/step", "the job alone", partial(_interference, summary=statistics.median)),
    Row("job.interference.p99", "ms/step", "the job alone", partial(_interference, summary=_p99)),
)
