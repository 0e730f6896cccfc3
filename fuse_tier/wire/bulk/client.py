"""The connecting side of bulk streams: one session there, or back.

A cancelled transfer ends its stream, and thereby the other side's part in it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from fuse_tier.blobs import Blob, Progress, Sink, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import InvalidRequest, TierError, TierRefused, TierUnavailable
from fuse_tier.threads import run_interruptible
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Answer
from fuse_tier.wire.bulk.streams import Stream, StreamBroken
from fuse_tier.wire.bulk.transfer import patience_for, receive, receive_verdicts, transmit
from fuse_tier.wire.tls import SERVER_NAME, TlsFiles, client_context

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where and how to begin a granted session. ``tls`` is None for a stream in the clear."""

    address: str  # HOST:PORT
    token: bytes
    tls: TlsFiles | None


async def push(
    to: Destination, blobs: Sequence[Blob], source: Source, progress: Progress, threads: trio.CapacityLimiter
) -> dict[Blob, TierError]:
    """Sends the session's blobs; gives those that did not get there. All others the receiver has verified.

    Raises TierUnavailable, and then nothing is known of any; TierRefused.
    """

    def send(stream: Stream) -> dict[Blob, TierError]:
        unreadable = transmit(stream, blobs, source, progress)
        return receive_verdicts(stream, blobs) | unreadable

    return await _transfer(to, blobs, send, threads)


async def pull(
    from_: Destination,
    blobs: Sequence[Blob],
    sink: Sink,
    progress: Progress,
    threads: trio.CapacityLimiter,
    arrived: set[Blob],
    failed: dict[Blob, TierError],
) -> None:
    """Receives the session's blobs into the sink, and notes for each how it went, as it goes.

    Raises TierUnavailable and TierRefused; what was noted before holds.
    """
    await _transfer(from_, blobs, lambda stream: receive(stream, blobs, sink, progress, arrived, failed), threads)


async def _transfer(
    to: Destination, blobs: Sequence[Blob], work: Callable[[Stream], _T], threads: trio.CapacityLimiter
) -> _T:
    def converse(stream: Stream) -> _T:
        _begin(stream, to)
        stream.patience(patience_for(blobs))
        return work(stream)

    async with _connected(to.address) as stream:
        try:
            return await run_interruptible(partial(converse, stream), stream.interrupt, threads)
        except StreamBroken as error:
            raise TierUnavailable(f"transfer with {to.address} failed: {error}") from error
        except InvalidRequest as error:
            raise TierRefused(f"{to.address} does not keep to the bulk protocol: {error}") from error


def _begin(stream: Stream, to: Destination) -> None:
    if to.tls is not None:
        stream.encrypt(client_context(to.tls), SERVER_NAME)
    stream.send(format.encode_prelude(to.token))
    match format.decode_answer(stream.receive_exactly(format.ANSWER_BYTES)):
        case Answer.OTHER_VERSION:
            raise TierRefused(
                f"{to.address} speaks another version of the bulk protocol: run the same version on both"
            )
        case Answer.NO_SUCH_SESSION:
            raise TierUnavailable(
                f"{to.address} has forgotten the session, as after a restart: another try gets a new one"
            )
        case Answer.OK:
            return


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Stream]:
    stream = await _connect(address)
    try:
        yield stream
    finally:
        stream.close()


async def _connect(address: str) -> Stream:
    host, _, port = address.rpartition(":")
    cause: OSError | None = None
    with trio.move_on_after(Deadline.BULK_CONNECT):
        try:
            found = await trio.socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise TierUnavailable(f"{address} can not be resolved: {error.strerror}") from error
        for family, kind, protocol, _, target in found:
            with trio.socket.socket(family, kind, protocol) as connecting:
                try:
                    await connecting.connect(target)
                except OSError as error:
                    cause = error
                    continue
                connected = socket.socket(fileno=connecting.detach())
            connected.setblocking(True)
            return Stream(connected, Deadline.BULK_CONNECT)
        raise TierUnavailable(f"{address} does not answer: {cause.strerror if cause else 'it has no address'}")
    raise TierUnavailable(f"{address} did not answer within {Deadline.BULK_CONNECT:g} s")
