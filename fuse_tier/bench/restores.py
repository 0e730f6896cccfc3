"""The benchmarks of getting files back from peers: how soon they are seen, read, and all there; and who sends them.

One setting serves the three rows of a restore: 4 GiB in 1,000 files, whose node lost its RAM, so that one peer has
them. They are asked for by name, but measured together, once.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.bench.nodes import IDENTITY, in_thread, mounted, settled
from fuse_tier.bench.places import BLOCK_BYTES, GIB, copy_seconds, tmpfs, warm, write_file, write_files
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalCluster, local_cluster

_FILES = 1000
_FILE_BYTES = 4 * GIB // _FILES // BLOCK_BYTES * BLOCK_BYTES
_LS_LIMIT_SECONDS = 0.2
_FIRST_LIMIT_SECONDS = 0.3
_RECEIVERS = 4
_BROADCAST_FILES = 32
_BROADCAST_BYTES = 16 << 20
_BROADCAST_RAM = "3GiB"
_WAIT_SECONDS = 300.0
_SENT = 'fuse_tier_bulk_bytes_total{direction="out"}'


@dataclass(frozen=True, slots=True)
class _Restore:
    """Seconds from the mount's begin."""

    listed: float
    first: float
    whole: float


def _read(path: Path) -> int:
    buffer, size = memoryview(bytearray(BLOCK_BYTES)), 0
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            size += got
    return size


def _read_all(directory: Path) -> None:
    size = sum(_read(path) for path in directory.iterdir())
    if size != _FILES * _FILE_BYTES:
        raise FuseTierError(f"{directory} has {size} bytes after its restore")


async def _lose_and_restore(cluster: LocalCluster, mount: Path) -> _Restore:
    node = cluster["a"]
    await node.unmount(mount)
    await node.lose_ram()
    await node.start()
    begun = time.perf_counter()
    await node.mount(IDENTITY, mount)
    names = await in_thread(os.listdir, mount / "step")
    listed = time.perf_counter() - begun
    await in_thread(_read, mount / "step" / min(names))
    first = time.perf_counter() - begun
    await in_thread(_read_all, mount / "step")
    whole = time.perf_counter() - begun
    await settled(node, "peer")
    return _Restore(listed, first, whole)


_measured: dict[str, Figure] = {}


async def _restore(directory: Path, which: str) -> Figure:
    if which not in _measured:
        _measured.update(await _measure_restores(directory))
    return _measured.pop(which)


async def _measure_restores(directory: Path) -> dict[str, Figure]:
    restores: list[_Restore] = []
    copies: list[float] = []
    with tmpfs(directory, 9 * GIB) as plain:
        await in_thread(warm, plain, 8 * GIB)
        await in_thread(write_files, plain / "source", _FILES, _FILE_BYTES)
        async with mounted(directory / "c", ["a", "b"], ram_size="5GiB", encryptPeerTraffic=False) as (
            cluster,
            mount,
        ):
            await in_thread(write_files, mount / "step", _FILES, _FILE_BYTES)
            await settled(cluster["a"], "peer")
            for _ in range(RUNS + 1):
                restores.append(await _lose_and_restore(cluster, mount))
                copies.append(await in_thread(copy_seconds, plain / "source", plain / "target"))
    size = _FILES * _FILE_BYTES / 1e9
    return {
        "ls": Figure(statistics.median(run.listed for run in restores[1:]), _LS_LIMIT_SECONDS),
        "first": Figure(statistics.median(run.first for run in restores[1:]), _FIRST_LIMIT_SECONDS),
        "all": Figure(
            size / statistics.median(run.whole for run in restores[1:]), size / statistics.median(copies[1:])
        ),
    }


async def _bytes_sent(cluster: LocalCluster, name: str) -> float:
    """What a node's bulk streams have sent since its start."""
    host, _, port = cluster[name].config["metrics"].rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        text = b"".join([chunk async for chunk in stream]).decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(_SENT))


async def _broadcast(directory: Path) -> Figure:
    """Four nodes need what one has, at the same moment: volumes of their own, with the same content."""
    receivers = [f"r{number}" for number in range(_RECEIVERS)]
    block = os.urandom(BLOCK_BYTES)
    async with local_cluster(
        directory / "c", ["a", *receivers], ram_size=_BROADCAST_RAM, bucket=False, replicas=0
    ) as cluster:
        for name in receivers:
            mount = cluster.mountpoint("a") / name
            await cluster["a"].mount(f"default/bench/{name}", mount)
            await in_thread(_write_alike, mount, block)
            await cluster["a"].wait(f"default/bench/{name}", "ram", _WAIT_SECONDS)
            await cluster["a"].unmount(mount)
        before = await _bytes_sent(cluster, "a")

        async def restore(name: str) -> None:
            mount = cluster.mountpoint(name)
            await cluster[name].mount(f"default/bench/{name}", mount)
            for number in range(_BROADCAST_FILES):
                await in_thread(_read, mount / str(number))

        async with trio.open_nursery() as nursery:
            for name in receivers:
                nursery.start_soon(restore, name)
        sent = await _bytes_sent(cluster, "a") - before
    return Figure(sent / 1e9, _BROADCAST_FILES * _BROADCAST_BYTES / 1e9)


def _write_alike(directory: Path, block: bytes) -> None:
    for number in range(_BROADCAST_FILES):
        write_file(directory / str(number), _BROADCAST_BYTES, bytes([number]) + block[1:])


ROWS = (
    Row("peer.restore.ls", "s", "limit", partial(_restore, which="ls")),
    Row("peer.restore.first", "s", "limit", partial(_restore, which="first")),
    Row("peer.restore.all", "GB/s", "cp between two tmpfs directories", partial(_restore, which="all")),
    Row("peer.broadcast", "GB sent", "the data's size", _broadcast),
)
