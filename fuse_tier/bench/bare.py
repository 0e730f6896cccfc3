"""What the kernel, TLS and gRPC can do with the same bytes: copies over loopback that are neither hashed nor named.

Both ends are threads of this process, but for gRPC's server, which would share its client's interpreter lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from threading import Thread

import grpc
import trio

from fuse_tier.bench.places import BLOCK_BYTES
from fuse_tier.wire.tls import TlsFiles, client_context, server_context

_PIPE_BYTES = 1 << 20


def copy(source: Path, target: Path) -> float:
    """Seconds that ``sendfile`` and ``splice`` take for a file into a new one, which is allocated first."""
    return _copy_files([source], [target])


def copy_into_new(sources: Sequence[Path], directory: Path) -> float:
    """The same for files that go into a new directory over one stream, one after another; it is gone afterwards."""
    directory.mkdir()
    seconds = _copy_files(sources, [directory / source.name for source in sources])
    shutil.rmtree(directory)
    return seconds


def _copy_files(sources: Sequence[Path], targets: Sequence[Path]) -> float:
    sizes = [source.stat().st_size for source in sources]
    with _connected() as (near, far), _pipe() as pipe:

        def send() -> None:
            for source, size in zip(sources, sizes, strict=True):
                with source.open("rb") as file:
                    _send(near, size, file.fileno())

        begun = time.perf_counter()
        sender = Thread(target=send)
        sender.start()
        for target, size in zip(targets, sizes, strict=True):
            with target.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                _splice(far, pipe, size, file.fileno())
        sender.join()
        return time.perf_counter() - begun


def copy_under_tls(source: Path, target: Path, certificates: Path) -> float:
    """Seconds that a bare ``ssl`` stream takes for a file into a new one, which is allocated first."""
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
            return _copy_plain(source, target, client, server)


@contextmanager
def _connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def _copy_plain(source: Path, target: Path, client: ssl.SSLSocket, server: ssl.SSLSocket) -> float:
    size = source.stat().st_size
    with source.open("rb") as outof, target.open("x+b") as into:
        begun = time.perf_counter()
        os.posix_fallocate(into.fileno(), 0, size)
        sender = Thread(target=_send_plain, args=(client, size, outof.fileno()))
        sender.start()
        _receive_plain(server, size, into.fileno())
        sender.join()
        return time.perf_counter() - begun


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    outlet, inlet = os.pipe()
    try:
        fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield outlet, inlet
    finally:
        os.close(outlet)
        os.close(inlet)


def _send(near: socket.socket, size: int, source: int) -> None:
    sent = 0
    while sent < size:
        sent += os.sendfile(near.fileno(), source, sent, size - sent)


def _splice(far: socket.socket, pipe: tuple[int, int], size: int, target: int) -> None:
    outlet, inlet = pipe
    received = 0
    while received < size:
        left = os.splice(far.fileno(), inlet, min(_PIPE_BYTES, size - received))
        while left:
            moved = os.splice(outlet, target, left, offset_dst=received)
            left -= moved
            received += moved


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


@asynccontextmanager
async def grpc_receiver(place: Path) -> AsyncIterator[Callable[[int, int], float]]:
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
