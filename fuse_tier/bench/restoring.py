"""The benchmarks of coming back: how soon names, the first file and all files are there; and one source for many."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fuse_tier.bench import bare
from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.bench.nodes import IDENTITY, at_rest, in_thread, mounted, sent_bytes, settled, warmed
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, warm, write_file, write_files
from fuse_tier.localcluster import LocalCluster

_FILES = 1000
_SIZE = _FILES * 4 * BLOCK_BYTES
_LS_LIMIT_SECONDS = 0.2
_FIRST_LIMIT_SECONDS = 0.3
_SHARED_BYTES = GIB // 2
_SHARED_FILES = 64
_RECEIVERS = 4


@asynccontextmanager
async def _to_restore(directory: Path) -> AsyncIterator[LocalCluster]:
    """Nodes ``a`` and ``b`` with a snapshot of 4 GiB in 1,000 files; both have memory made ready (``ram.warm``)."""
    settings: dict[str, Any] = {
        "ram_size": "9GiB",
        "ram_warm": True,
        "encryptPeerTraffic": False,
        "coordinator": True,
    }
    async with mounted(directory / "c", ["a", "b"], **settings) as (cluster, mount):
        await in_thread(write_files, mount / "step", _FILES, _SIZE // _FILES)
        await settled(cluster["a"], "peer")
        await cluster["a"].unmount(mount)
        yield cluster


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds from the mount's end to the names, to one file's end, and to all of them; and of a bare copy."""

    listed: float
    first: float
    whole: float
    bare: float


async def _restores(directory: Path) -> dict[str, Figure]:
    """Three rows are about the same restores."""
    with tmpfs(directory, _SIZE + GIB) as plain:
        async with _to_restore(directory) as cluster:
            runs = await _restore_again_and_again(cluster, plain)

    def median(which: Callable[[_Run], float]) -> float:
        return statistics.median(map(which, runs))

    ours, theirs = median(lambda run: run.whole), median(lambda run: run.bare)
    return {
        "peer.restore.ls": Figure(median(lambda run: run.listed), _LS_LIMIT_SECONDS),
        "peer.restore.first": Figure(median(lambda run: run.first), _FIRST_LIMIT_SECONDS),
        "peer.restore.all": Figure(_SIZE / ours / 1e9, _SIZE / theirs / 1e9),
    }


async def _restore_again_and_again(cluster: LocalCluster, plain: Path) -> list[_Run]:
    node, sources = cluster["a"], list((cluster["b"].ram_path / "blobs").glob("*/*"))
    runs = []
    for number in range(RUNS):
        await node.lose_ram()
        await in_thread(warm, plain, _SIZE)
        bare_seconds = await in_thread(bare.copy_into_new, sources, plain / "target")
        await node.start()
        mount = cluster.mountpoint(f"again{number}")
        await warmed(node)
        await at_rest(node)
        await node.mount(IDENTITY, mount)
        begun = time.perf_counter()
        names = await in_thread(os.listdir, mount / "step")
        listed = time.perf_counter() - begun
        first = await in_thread(_read, [mount / "step" / names[-1]]) + listed
        rest = await in_thread(_open, [mount / "step" / name for name in names])
        runs.append(_Run(listed, first, first + rest, bare_seconds))
        await node.unmount(mount)
    return runs


def _read(paths: list[Path]) -> float:
    """Seconds to read files to their ends."""
    buffer = bytearray(BLOCK_BYTES)
    begun = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                continue
    return time.perf_counter() - begun


def _open(paths: list[Path]) -> float:
    """Seconds until the content of all files is there: each open waits for its file's."""
    begun = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            file.read(1)
    return time.perf_counter() - begun


async def _broadcast(directory: Path) -> Figure:
    """What the source sends when four others restore the same content at once, as ranks of one group do.

    What comes twice counts twice. The content comes behind the mounts, while their jobs read it.
    """
    receivers = [f"r{number}" for number in range(_RECEIVERS)]
    settings: dict[str, Any] = {"ram_size": "3GiB", "encryptPeerTraffic": False, "replicas": 0}
    async with mounted(directory / "c", ["a", *receivers], **settings) as (cluster, _):
        source = cluster["a"]
        blocks = [os.urandom(BLOCK_BYTES) for _ in range(_SHARED_FILES)]
        for name in receivers:
            mount = cluster.mountpoint(name)
            await source.mount(f"default/rank/{name}", mount)
            for number, block in enumerate(blocks):
                await in_thread(write_file, mount / f"{number:03}", _SHARED_BYTES // _SHARED_FILES, block)
            await source.unmount(mount)

        async def restore(name: str) -> None:
            mount = cluster.mountpoint(f"{name}-again")
            await cluster[name].mount(f"default/rank/{name}", mount)
            await in_thread(_read, sorted(mount.iterdir()))

        async with trio.open_nursery() as nursery:
            for name in receivers:
                nursery.start_soon(restore, name)
        return Figure(await in_thread(sent_bytes, source) / 1e6, _SHARED_BYTES / 1e6)


ROWS = (
    Row("peer.restore.ls", "s", "limit", _restores),
    Row("peer.restore.first", "s", "limit", _restores),
    Row("peer.restore.all", "GB/s", "sendfile and splice, not hashed", _restores),
    Row("peer.broadcast", "MB", "the content", _broadcast),
)
