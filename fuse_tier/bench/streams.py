"""The benchmarks of bulk streams: from a sealed file of one RAM tier to a verified blob of another, over loopback.

Beside what the kernel, TLS and gRPC can do with the same bytes, in the same run. Both ends are threads of this
process, as are the references', but for gRPC's server, which would share its client's interpreter lock.
"""

from __future__ import annotations

import fcntl
import os
import random
import resource
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from threading import Thread

import grpc
import trio

from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.places import BLOCK_BYTES, GIB, tmpfs, warm
from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.tiers.base import no_progress
from fuse_tier.wire.bulk.client import Grant, push
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.tls import TlsFiles, client_context, make_authority, make_certificate, server_context

_PIPE_BYTES = 1 << 20
_CPU_LIMIT = 0.6  # seconds per GB, both sides together
_SMALL_FILES = 10_000
_SMALL_BYTES = 4 << 10
_SMALL_LIMIT = 5_000.0  # files per second


@dataclass(slots=True)
class Ends:
    """Two RAM tiers and a bulk port between them."""

    place: Path
    layout: Layout  # of the source
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
            yield Ends(place, layouts[0], source, target, sessions, f"127.0.0.1:{port}", tls.get("a"))
            nursery.cancel_scope.cancel()


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


# ---- references ----


@contextmanager
def _connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def _bare(ends: Ends, blob: Blob, send: Callable[[int], None], receive: Callable[[int], None]) -> float:
    """Seconds for the same bytes from the same file into a new one, which is allocated first."""
    path = ends.place / "bare"
    source, target = ends.source.open(blob), os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        begun = time.perf_counter()
        os.posix_fallocate(target, 0, blob.size)
        sender = Thread(target=send, args=(source,))
        sender.start()
        receive(target)
        sender.join()
        return time.perf_counter() - begun
    finally:
        os.close(source)
        os.close(target)
        path.unlink()


def _send_bare(near: socket.socket, size: int, source: int) -> None:
    sent = 0
    while sent < size:
        sent += os.sendfile(near.fileno(), source, sent, size - sent)


def _splice_bare(far: socket.socket, size: int, target: int) -> None:
    outlet, inlet = os.pipe()
    fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    received = 0
    while received < size:
        left = os.splice(far.fileno(), inlet, min(_PIPE_BYTES, size - received))
        while left:
            moved = os.splice(outlet, target, left, offset_dst=received)
            left -= moved
            received += moved
    os.close(outlet)
    os.close(inlet)


def _bare_copy(ends: Ends, blob: Blob) -> float:
    with _connected() as (near, far):
        return _bare(ends, blob, partial(_send_bare, near, blob.size), partial(_splice_bare, far, blob.size))


def _send_plain(connection: ssl.SSLSocket, size: int, source: int) -> None:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    sent = 0
    while sent < size:
        got = os.preadv(source, [buffer], sent)
        connection.sendall(buffer[:got])
        sent += got


def _receive_plain(connection: ssl.SSLSocket, size: int, target: int) -> None:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    received = 0
    while received < size:
        got = connection.recv_into(buffer)
        os.pwrite(target, buffer[:got], received)
        received += got


def _bare_tls(ends: Ends, certificates: Path, blob: Blob) -> float:
    here, there = (TlsFiles(*(str(certificates / f) for f in ("ca.pem", f"{n}.pem", f"{n}.key"))) for n in ("a", "b"))
    with _connected() as (near, far):
        accepted: list[ssl.SSLSocket] = []
        context = server_context(there)
        context.num_tickets = 0
        accepting = Thread(target=lambda: accepted.append(context.wrap_socket(far, server_side=True)))
        accepting.start()
        client = client_context(here).wrap_socket(near, server_hostname="fuse-tier")
        accepting.join()
        with client, accepted[0] as server:
            send, receive = partial(_send_plain, client, blob.size), partial(_receive_plain, server, blob.size)
            return _bare(ends, blob, send, receive)


@asynccontextmanager
async def _grpc_receiver(place: Path) -> AsyncIterator[Callable[[int, int], float]]:
    """A server of a byte stream in a process of its own; gives what sends it a file and tells the seconds."""
    command = [sys.executable, "-m", "fuse_tier.bench.grpc_receiver", str(place / "received")]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdout=PIPE, check=False))
        port = (await process.stdout.receive_some()).decode().strip()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            write: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/bench/Write")

            def send(source: int, size: int) -> float:
                begun = time.perf_counter()
                write(os.pread(source, BLOCK_BYTES, offset) for offset in range(0, size, BLOCK_BYTES))
                return time.perf_counter() - begun

            yield send
        process.terminate()


# ---- rows ----


async def _rates(ends: Ends, blob: Blob, reference: Callable[[], Awaitable[float]]) -> Figure:
    async def ours() -> float:
        return blob.size / await ends.copy([blob]) / 1e9

    async def theirs() -> float:
        return blob.size / await reference() / 1e9

    return await alternating(ours, theirs)


async def bare_copy_rates(directory: Path, runs: int) -> list[float]:
    """GB/s of the bare copy of 1 GiB, after one time that does not count."""
    async with _ends(directory) as ends:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        seconds = [await trio.to_thread.run_sync(_bare_copy, ends, blob) for _ in range(runs + 1)]
        return [blob.size / one / 1e9 for one in seconds[1:]]


async def _clear(directory: Path) -> Figure:
    async with _ends(directory) as ends:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        return await _rates(ends, blob, partial(trio.to_thread.run_sync, _bare_copy, ends, blob))


async def _encrypted(directory: Path) -> Figure:
    async with _ends(directory, encrypted=True) as ends:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        return await _rates(ends, blob, partial(trio.to_thread.run_sync, _bare_tls, ends, directory, blob))


async def _beside_grpc(directory: Path) -> Figure:
    async with _ends(directory) as ends, _grpc_receiver(ends.place) as send:
        blob = await trio.to_thread.run_sync(_large, ends.layout)
        fd = ends.source.open(blob)
        try:
            return await _rates(ends, blob, partial(trio.to_thread.run_sync, send, fd, blob.size))
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
