"""Sizes of content are what somebody says: no stream waits for ever, or fails, because of one that is not so."""

from __future__ import annotations

import random
import socket
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.blobs import MAX_BLOB_SIZE, Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import NotFound, TierFull, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.client import Grant, pull
from fuse_tier.wire.bulk.format import Answer, Outcome
from fuse_tier.wire.bulk.sessions import Direction
from fuse_tier.wire.bulk.transfer import Receipt, patience_for
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding
from tests.harness.waiting import until
from tests.wire.bulk import contents_of, running_server, send
from tests.wire.certificates import Certificates
from tests.wire.peers import running_peer

HUGE = [Blob(bytes(15) + bytes([number]), size) for number, size in enumerate((1 << 40, 1 << 61, MAX_BLOB_SIZE))]


def test_patience_grows_with_what_is_to_be_hashed_up_to_a_longest() -> None:
    assert patience_for([]) == Deadline.BULK_STALL
    assert patience_for([Blob(bytes(16), 1 << 30), Blob(bytes(16), 10 << 30)]) > Deadline.BULK_STALL + 10
    for blob in HUGE:
        assert patience_for([blob]) == Deadline.BULK_STALL_LONGEST


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("huge", HUGE)
async def test_content_that_is_larger_than_any_file_is_not_found_and_the_rest_arrives(
    memory_path: Path, certificates: Certificates, huge: Blob, encrypted: bool
) -> None:
    tls = (certificates.a, certificates.b) if encrypted else (None, None)
    here, sink = hash_bytes(b"0123"), MemoryBlobs()
    async with running_peer(memory_path, tls[1]) as peer, aclosing(peer.tier(tls[0])) as tier:
        await peer.ram.store([here], holding([b"0123"]))
        fetched = await tier.fetch([huge, here], sink)
    assert fetched.arrived == {here}
    assert isinstance(fetched.failed[huge], NotFound)


async def test_who_names_what_is_not_here_is_waited_for_no_longer(
    expected_logs: ExpectedLogs, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a place, and reads nothing of what is sent to it."""
    expected_logs.allow("bulk.stream_refused")
    monkeypatch.setattr(Deadline, "BULK_STALL", 0.2)
    source, honest = contents_of([32 << 20], rng), holding([b"0123"])
    (blob,) = source.contents
    async with running_server(max_streams=1, source=source) as server:
        host, _, port = server.address.rpartition(":")

        async def is_served() -> bool:
            try:
                return (await send(server, honest)).arrived == honest.contents.keys()
            except TierUnavailable:
                return False

        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(format.encode_prelude(server.grant(Direction.PULL, [blob, HUGE[0]]).token))
            await trio.to_thread.run_sync(idle.recv, format.ANSWER_BYTES)
            await until(is_served)


async def test_content_that_does_not_fit_is_not_waited_for(threads: trio.CapacityLimiter) -> None:
    """A peer claims to have it, and would send for ever."""
    blob = HUGE[1]
    opening = format.encode_answer(Answer.OK) + format.encode_header(blob, Outcome.OK)

    async def claim(stream: trio.SocketStream) -> None:
        await stream.receive_some(format.PRELUDE_BYTES)
        await stream.send_all(opening)
        try:
            while True:
                await stream.send_all(bytes(1 << 16))
        except trio.BrokenResourceError:
            ended.set()

    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, claim, 0, host="127.0.0.1"))
        grant = Grant(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", bytes(32), None)
        receipt, sink = Receipt(), MemoryBlobs(capacity=1000)
        await pull(grant, [blob], sink, no_progress, threads, receipt)
        await ended.wait()
        nursery.cancel_scope.cancel()
    assert receipt.failed.keys() == {blob}
    assert isinstance(receipt.failed[blob], TierFull)
