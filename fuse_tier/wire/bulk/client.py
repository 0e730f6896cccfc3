"""The connecting side of bulk streams: one session there, or back.

A cancelled transfer ends its stream, and with it the other side's part: a cancelled push waits, briefly, until
the receiver has let go, so that nothing of it lands later.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from fuse_tier.blobs import Blob, Partial, Progress, Sink, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import InvalidRequest, TierRefused, TierUnavailable
from fuse_tier.threads import run_interruptible
from fuse_tier.wire import impostors
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Answer
from fuse_tier.wire.bulk.pacing import Link, Urgency
from fuse_tier.wire.bulk.streams import Stream, StreamBroken
from fuse_tier.wire.bulk.transfer import Receipt, patience_for, receive, receive_verdicts, transmit
from fuse_tier.wire.renewal import current_client_context
from fuse_tier.wire.tls import SERVER_NAME, TlsFiles

_LETTING_GO_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Grant:
    """Where a session was granted, and its token. ``tls`` is None for a stream in the clear.

    Under TLS the token is shown to ``node`` alone; None where any with a certificate of the cluster will do.
    """

    address: str  # HOST:PORT
    token: bytes
    tls: TlsFiles | None
    begun: Mapping[Blob, Partial] = field(default_factory=dict)  # what the receiver has already
    node: str | None = None


async def push(
    grant: Grant,
    blobs: Sequence[Blob],
    source: Source,
    progress: Progress,
    threads: trio.CapacityLimiter,
    link: Link | None = None,
) -> Receipt:
    """Sends the session's blobs. What the receipt says has arrived, the receiver has verified.

    Raises TierUnavailable, and then nothing is known of any, NotThatNode among them; TierRefused.
    """

    receipt = Receipt()

    def send(stream: Stream) -> None:
        try:
            _begin(stream, grant, blobs)
            stream.share(link or Link(), Urgency.REPLICATION)
            unreadable = transmit(stream, blobs, source, progress, grant.begun)
            receive_verdicts(stream, blobs, receipt)
        except StreamBroken:
            stream.await_end(_LETTING_GO_SECONDS)
            raise
        receipt.failed |= unreadable
        receipt.torn -= unreadable.keys()

    async with _connected(grant.address) as stream:
        await _run_ending_gently(stream, partial(send, stream), threads)
    return receipt


async def pull(
    grant: Grant,
    blobs: Sequence[Blob],
    sink: Sink,
    progress: Progress,
    threads: trio.CapacityLimiter,
    receipt: Receipt,
    link: Link | None = None,
) -> None:
    """Receives the session's blobs into the sink, and notes for each how it went, as it goes.

    The stream ends with the last that the sink takes: what it refuses after that, however large, is not waited for.
    Raises TierUnavailable and TierRefused; what was noted before holds.
    """
    link = link or Link()

    def fetch(stream: Stream) -> None:
        _begin(stream, grant, blobs)
        stream.share(link, Urgency.RESTORE)
        receive(stream, blobs, sink, progress, receipt, grant.begun, ends_early=True)

    async with _connected(grant.address) as stream:
        with link.restoring():
            await run_interruptible(partial(fetch, stream), stream.interrupt, threads)


def _begin(stream: Stream, grant: Grant, blobs: Sequence[Blob]) -> None:
    if grant.tls is not None:
        stream.encrypt(current_client_context(grant.tls), SERVER_NAME)
        if grant.node is not None and stream.node != grant.node:
            raise impostors.note(grant.node, grant.address)
    stream.send(format.encode_prelude(grant.token))
    answer = format.decode_answer(stream.receive_exactly(format.ANSWER_BYTES))
    if answer is Answer.OTHER_VERSION:
        raise TierRefused(
            f"{grant.address} speaks another version of the bulk protocol: run one version on both nodes"
        )
    if answer is Answer.NO_SUCH_SESSION:
        raise TierUnavailable(f"{grant.address} does not know the session any more: another try begins a new one")
    stream.patience(patience_for(blobs))


async def _run_ending_gently(stream: Stream, work: Callable[[], None], threads: trio.CapacityLimiter) -> None:
    """Runs ``work``; when cancelled, ends only what it sends, and waits a little for the other side to end."""
    ended = trio.Event()
    failure: Exception | None = None

    async def end_when_cancelled() -> None:
        try:
            await ended.wait()
        except trio.Cancelled:
            stream.interrupt_sending()
            with trio.move_on_after(_LETTING_GO_SECONDS, shield=True):
                await ended.wait()
            running.cancel()
            raise

    async with trio.open_nursery() as nursery:
        with trio.CancelScope(shield=True) as running:
            nursery.start_soon(end_when_cancelled)
            try:
                await run_interruptible(work, stream.interrupt, threads)
            except Exception as error:  # noqa: BLE001 - raised below, out of the nursery's group
                failure = error
        ended.set()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Stream]:
    """A stream for one transfer, whose errors are told with the address."""
    stream = await _connect(address)
    try:
        yield stream
    except StreamBroken as error:
        raise type(error)(f"the transfer with {address} failed: {error}") from error
    except InvalidRequest as error:
        raise TierRefused(f"{address} does not keep to the bulk protocol: {error}") from error
    except OSError as error:
        raise TierUnavailable(
            f"the transfer with {address} failed on this side: {error.strerror or error}"
        ) from error
    finally:
        stream.close()


async def _connect(address: str) -> Stream:
    host, _, port = address.rpartition(":")
    cause = "it has no address"
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
                    cause = os.strerror(error.errno) if error.errno else str(error)
                    continue
                connected = socket.socket(fileno=connecting.detach())
            connected.setblocking(True)
            return Stream(connected, Deadline.BULK_CONNECT)
        raise TierUnavailable(f"{address} does not answer: {cause.lower()}")
    raise TierUnavailable(f"{address} did not answer within {Deadline.BULK_CONNECT:g} s")
