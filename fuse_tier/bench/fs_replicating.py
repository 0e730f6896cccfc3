"""How much of a job's writing is lost while its files are hashed and copied to a peer on the same machine."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.fs_content import PASSTHROUGH_NEEDS_ROOT, WARM_BYTES
from fuse_tier.bench.nodes import in_thread, mounted, settled, until_room
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, warm, write_file, write_files

_ALONE_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 0.05


async def _write(directory: Path) -> Figure:
    """A file that is held open is written again and again, while others are hashed and copied to a peer; and alone.

    The writer opens and closes nothing meanwhile, so it delays no snapshot, and is no part of one.
    """
    settings: dict[str, Any] = {
        "passthrough": "on",
        "keep": {"ram": 1},
        "encryptPeerTraffic": False,
        "settle": _SETTLE_SECONDS,
    }
    with tmpfs(directory, WARM_BYTES) as plain:
        await in_thread(warm, plain, WARM_BYTES - GIB)
    async with mounted(directory / "c", ["a", "b"], ram_size="5GiB", **settings) as (cluster, mount):
        node, step = cluster["a"], 0
        await in_thread(write_file, mount / "held", GIB // 4, os.urandom(BLOCK_BYTES))
        writer = _Rewriter(mount / "held")

        async def beside_copying() -> float:
            nonlocal step
            step += 1
            for each in cluster:
                await until_room(each, GIB + GIB // 2)
            await in_thread(write_files, mount / f"step{step}", 8, GIB // 8)
            async with _writing(writer):
                await trio.sleep(_SETTLE_SECONDS)
                begun = time.perf_counter()
                await settled(node, "peer")
                rate = writer.rate(begun)
            await in_thread(shutil.rmtree, mount / f"step{step}")
            await settled(node, "peer")
            return rate

        async def alone() -> float:
            async with _writing(writer):
                begun = time.perf_counter()
                await trio.sleep(_ALONE_SECONDS)
                return writer.rate(begun)

        try:
            return await alternating(beside_copying, alone)
        finally:
            writer.close()


class _Rewriter:
    """Writes a file in place, from its start to its end and anew, until it is told to stop."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._blocks = os.fstat(self._fd).st_size // BLOCK_BYTES
        self._written: list[float] = []  # when, for each block
        self.told = threading.Event()

    def write_until_told(self) -> None:
        """Blocks."""
        block = os.urandom(BLOCK_BYTES)
        self._written.clear()
        for number in itertools.cycle(range(self._blocks)):
            if self.told.is_set():
                return
            os.pwrite(self._fd, block, number * BLOCK_BYTES)
            self._written.append(time.perf_counter())

    def rate(self, since: float) -> float:
        """Since then, in GB/s."""
        ended = time.perf_counter()
        written = sum(since <= moment <= ended for moment in self._written)
        return written * BLOCK_BYTES / (ended - since) / 1e9

    def close(self) -> None:
        """After it has stopped."""
        os.close(self._fd)


@asynccontextmanager
async def _writing(writer: _Rewriter) -> AsyncIterator[None]:
    """It writes until the block is left, however that comes about."""
    writer.told.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, writer.write_until_told)
        try:
            yield
        finally:
            writer.told.set()


ROWS: Final = (
    Row(
        "fs.write.replicating",
        "GB/s",
        "the same while nothing is copied",
        _write,
        PASSTHROUGH_NEEDS_ROOT,
    ),
)
