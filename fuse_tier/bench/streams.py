"""The benchmarks of bulk streams: from a sealed file of one RAM tier to a verified blob of another, over loopback.

Beside what the kernel, TLS and gRPC can do with the same bytes, in the same run (``bare.py``). Both ends are threads
of this process.
"""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from fuse_tier.bench import bare
from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, warm
from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.spares import Spares
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.tiers.base import no_progress
from fuse_tier.wire.bulk.client import Grant, push
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.tls import TlsFiles

_CPU_LIMIT = 0.6  # seconds per GB, both sides together
_SMALL_FILES = 10_000
_SMALL_BYTES = 4 << 10
_SMALL_LIMIT = 5_000.0  # files per second


@dataclass(slots=True)
class Ends:
    """Two RAM tiers and a bulk port between them."""

    place: Path
    layout: Layout  # of the source
    target_layout: Layout
    source: RamContent
    target: RamContent
    sessions: Sessions
    address: str
    tls: TlsFiles | None

    async def copy(self, blobs: Sequence[Blob]) -> float:
        """Seconds for blobs that are not at the target, in one session of one stream."""
        for blob in blobs:
            self.target.remove(blob)
        caller = "a" if self.tls else None
        session = Session(caller, Direction.PUSH, tuple(blobs), self.tls is not None)
        grant = Grant(self.address, self.sessions.grant(session), self.tls)
        begun = time.perf_counter()
        receipt = await push(grant, blobs, self.source, no_progress, trio.CapacityLimiter(1))
        seconds = time.perf_counter() - begun
        if len(receipt.arrived) != len(blobs):
            raise FuseTierError(f"only {len(receipt.arrived)} of {len(blobs)} blobs arrived")
        return seconds

    async def copy_into_spare(self, blob: Blob) -> float:
        """The same for one blob that lands in a spare, as it does on a node that was at rest before."""
        self.target.remove(blob)
        await trio.to_thread.run_sync(make_spare, self.target_layout, blob.size)
        return await self.copy([blob])

    async def bare(self, blob: Blob, copy: Callable[[Path, Path], float]) -> float:
        """Seconds that a reference takes for the same file into a new one, which is gone afterwards."""
        target = self.place / "bare"
        try:
            return await trio.to_thread.run_sync(copy, Path(self.layout.blob(blob)), target)
        finally:
            target.unlink()


@asynccontextmanager
async def _ends(directory: Path, *, encrypted: bool = False) -> AsyncIterator[Ends]:
    tls: dict[str, TlsFiles] = {}
    if encrypted:
        make_authority(str(directory))
        tls = {name: make_certificate(str(directory), name) for name in ("a", "b")}
    with tmpfs(directory, 4 * GIB) as place:
        await trio.to_thread.run_sync(warm, place, 3 * GIB)
        layouts = [Layout(str(place / name)) for name in ("a", "b")]
        for layout in layouts:
            os.mkdir(layout.root)
            create_directories(layout)
        source, target = (RamContent(layout, layout.root) for layout in layouts)
        sessions = Sessions()
        async with trio.open_nursery() as nursery:
            serve = partial(serve_bulk, "127.0.0.1:0", sessions, target, target, tls.get("b"))
            port = await nursery.start(serve)
            yield Ends(place, layouts[0], layouts[1], source, target, sessions, f"127.0.0.1:{port}", tls.get("a"))
            nursery.cancel_scope.cancel()


def make_spare(layout: Layout, size: int) -> None:
    """Makes pages ready for content of so many bytes."""
    with Spares(layout).begin(size) as spare:
        spare.fill(0, size)
        spare.finish()


def _large(layout: Layout) -> Blob:
    """A file of 1 GiB, sealed."""
    block, path = os.urandom(BLOCK_BYTES), os.path.join(layout.root, "sealing")
    with open(path, "wb+") as file:
        for number in range(GIB // BLOCK_BYTES):
            file.write(block[:-8] + number.to_bytes(8))
        file.flush()
        blob = hash_descriptor(file.fileno())
    os.rename(path, layout.blob(blob))
    return blob


# ---- rows ----


async def _rates(ends: Ends, blob: Blob, reference: Callable[[], Awaitable[float]]) -> Figure:
    async def ours() -> float:
        return blob.size / await ends.copy([blob]) / 1e9

    async def theirs() -> float:
        return blob.size / await reference() / 1e9

    return await alternating(ours, theirs)


async def _clear(directory: Path) -> Figure:
    async with _ends(directory) as ends:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        return await _rates(ends, blob, partial(ends.bare, blob, bare.copy))


async def _encrypted(directory: Path) -> Figure:
    async with _ends(directory, encrypted=True) as ends:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        return await _rates(
            ends, blob, partial(ends.bare, blob, partial(bare.copy_under_tls, certificates=directory))
        )


async def _beside_grpc(directory: Path) -> Figure:
    async with _ends(directory) as ends, bare.grpc_receiver(ends.place) as send:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        fd = ends.source.open(blob)

        async def ours() -> float:
            return blob.size / await ends.copy_into_spare(blob) / 1e9

        async def theirs() -> float:
            return blob.size / await trio.to_thread.run_sync(send, fd, blob.size) / 1e9

        try:
            return await alternating(ours, theirs)
        finally:
            os.close(fd)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _cpu(directory: Path) -> Figure:
    async with _ends(directory) as ends:
        blob = await trio.to_thread.run_sync(_large, ends.layout)

        async def ours() -> float:
            before = _cpu_seconds()
            await ends.copy([blob])
            return (_cpu_seconds() - before) / (blob.size / 1e9)

        return await alternating(ours, partial(_constant, _CPU_LIMIT))


async def _small(directory: Path) -> Figure:
    async with _ends(directory) as ends:
        contents = random.Random(0)
        blobs = []
        for _ in range(_SMALL_FILES):
            content = contents.randbytes(_SMALL_BYTES)
            Path(ends.layout.blob(blob := hash_bytes(content))).write_bytes(content)
            blobs.append(blob)
        sessions = [blobs[start : start + 4096] for start in range(0, len(blobs), 4096)]

        async def ours() -> float:
            return len(blobs) / sum([await ends.copy(session) for session in sessions])

        return await alternating(ours, partial(_constant, _SMALL_LIMIT))


async def _constant(value: float) -> float:
    return value


ROWS = (
    Row("peer.copy.clear", "GB/s", "sendfile and splice, not hashed", _clear),
    Row("peer.copy.cpu", "CPU s/GB", "limit", _cpu),
    Row("peer.copy.tls", "GB/s", "bare ssl stream, not hashed", _encrypted),
    Row("peer.copy.grpc", "GB/s", "grpcio stream of 1 MiB messages", _beside_grpc),
    Row("peer.small", "files/s", "limit", _small),
)
