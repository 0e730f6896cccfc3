"""Thousands of nodes in one process, as a server sees them: connections of their own, and gRPC's messages over them.

A channel of gRPC's takes 100 KB and its share of a thread, so that ten thousand would be measured rather than the
server. What is here speaks just so much HTTP/2 (RFC 9113) as calls of small messages need, with headers as they are
(RFC 7541, 6.2.2), and reads no header: a call that ends without a message has failed.
"""

from __future__ import annotations

import itertools
import resource
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import trio

from fuse_tier.errors import TierUnavailable

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_LARGEST_WINDOW: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = (1 << 16) - 1
_INITIAL_WINDOW_SIZE: Final = 0x4
_OTHER_DESCRIPTORS: Final = 512
_RECEIVED_AT_ONCE: Final = 1 << 16
_LARGEST_FRAME: Final = 1 << 14
_PREFIX: Final = struct.Struct(">BI")  # of a message: not compressed, and its length


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


Answer = TypeVar("Answer")


class _Received:
    """What has come of one call."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._is_over = False
        self._more = trio.Event()

    def add(self, part: bytes) -> None:
        self._bytes += part
        self._more.set()

    def end(self) -> None:
        self._is_over = True
        self._more.set()

    async def message(self) -> bytes | None:
        """The next one; None: there is none."""
        while True:
            self._more = trio.Event()
            if len(self._bytes) >= _PREFIX.size:
                length = _PREFIX.size + _PREFIX.unpack_from(self._bytes)[1]
                if len(self._bytes) >= length:
                    found = bytes(self._bytes[_PREFIX.size : length])
                    del self._bytes[:length]
                    return found
            if self._is_over:
                return None
            await self._more.wait()


class Wire:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._ids = itertools.count(1, 2)
        self._received: dict[int, _Received] = {}
        self._sending = trio.Lock()
        self._broken = ""

    async def call(self, path: str, request: _Message, answer: type[Answer]) -> Answer:
        """One unary call, such as ``/fuse_tier.v1.Coordinator/Report``. Raises TierUnavailable, whatever failed."""
        number, received = self._begin()
        return await self._ask(number, received, _headers_frame(number, path), request, answer, path, _END_STREAM)

    def converse(self, path: str, answer: type[Answer]) -> Callable[[_Message], Awaitable[Answer]]:
        """A call of which each message is answered: what takes one, and gives the answer. Raises TierUnavailable."""
        number, received = self._begin()
        opening = [_headers_frame(number, path)]

        async def ask(request: _Message) -> Answer:
            return await self._ask(number, received, opening.pop() if opening else b"", request, answer, path, 0)

        return ask

    def _begin(self) -> tuple[int, _Received]:
        number = next(self._ids)
        received = self._received[number] = _Received()
        return number, received

    async def _ask(
        self, number: int, received: _Received, before: bytes, request: _Message, answer: type[Answer],
        path: str, flags: int,
    ) -> Answer:  # fmt: skip
        message = request.SerializeToString()
        body = _PREFIX.pack(0, len(message)) + message
        parts = [body[at : at + _LARGEST_FRAME] for at in range(0, len(body), _LARGEST_FRAME)]
        frames = [_frame(_DATA, flags * (part is parts[-1]), number, part) for part in parts]
        await self._send(before + b"".join(frames))
        if (found := await received.message()) is None:
            raise TierUnavailable(f"{path} failed{': ' + self._broken if self._broken else ''}")
        parsed: Any = answer
        made: Answer = parsed.FromString(found)
        return made

    async def _send(self, what: bytes) -> None:
        async with self._sending:
            try:
                await self._stream.send_all(what)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise TierUnavailable("the connection is broken") from error

    async def read(self) -> None:
        """Takes what comes, until the connection ends."""
        pending = b""
        try:
            while part := await self._stream.receive_some(_RECEIVED_AT_ONCE):
                pending += part
                at = 0
                while len(pending) - at >= 9 and len(pending) - at >= 9 + (
                    length := int.from_bytes(pending[at : at + 3], "big")
                ):
                    kind, flags, number = struct.unpack_from(">BBI", pending, at + 3)
                    await self._take(kind, flags, number, pending[at + 9 : at + 9 + length])
                    at += 9 + length
                pending = pending[at:]
        except (trio.BrokenResourceError, trio.ClosedResourceError, TierUnavailable):
            pass  # told to all that wait, below
        self._broken = self._broken or "the connection ended"
        for received in self._received.values():
            received.end()

    async def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _DATA:
            self._received[number].add(payload)
        elif kind == _SETTINGS and not flags & _ACK:
            await self._send(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            await self._send(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._broken = f"the server goes away: {payload[8:].decode(errors='replace')}"
        if number and (kind == _RST or (kind in (_DATA, _HEADERS) and flags & _END_STREAM)):
            self._received.pop(number).end()


@asynccontextmanager
async def connected(address: str, count: int) -> AsyncIterator[list[Wire]]:
    """So many connections to HOST:PORT. Raises TierUnavailable when nobody listens there."""
    host, _, port = address.rpartition(":")
    async with trio.open_nursery() as nursery:
        wires = []
        for _ in range(count):
            wires.append(await connect(host, int(port), nursery))
        yield wires
        nursery.cancel_scope.cancel()


async def connect(host: str, port: int, nursery: trio.Nursery) -> Wire:
    """One connection, read in the nursery. Raises TierUnavailable."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise TierUnavailable(f"nobody listens at {host}:{port}: {error}") from error
    wire = Wire(stream)
    settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
    window = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)
    await stream.send_all(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, window))
    nursery.start_soon(_keep, stream, wire)
    return wire


async def _keep(stream: trio.SocketStream, wire: Wire) -> None:
    async with stream:
        await wire.read()


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, number) + payload


def _headers_frame(number: int, path: str) -> bytes:
    return _frame(_HEADERS, _END_HEADERS, number, _headers(path))


def _headers(path: str) -> bytes:
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "bench"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()  # shorter than 127, each


def most_connections(nodes: int) -> int:
    """A connection for each node, or as many as a server here may have open (each takes three descriptors)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return nodes
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return max(1, min(nodes, (most - _OTHER_DESCRIPTORS) // 3))
