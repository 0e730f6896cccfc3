"""Bulk streams between a real server and a real client on loopback: what arrives."""

from __future__ import annotations

import os
import random

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound, TierFull
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.bulk.client import push
from fuse_tier.wire.bulk.sessions import Direction
from tests.harness.snapshots import holding
from tests.harness.unreadable import Unreadable
from tests.harness.unreadable import unreadable as unreadable
from tests.wire.bulk import SIZES, Server, contents_of, receive, running_server, send
from tests.wire.certificates import Certificates


@pytest.mark.parametrize("encrypted", [False, True])
async def test_files_of_all_sizes_go_there_and_back_in_any_order(
    server: Server, secure: Server, certificates: Certificates, rng: random.Random, encrypted: bool
) -> None:
    to, tls = (secure, certificates.a) if encrypted else (server, None)
    sizes = [*SIZES, *(rng.randrange(200_000) for _ in range(40))]
    rng.shuffle(sizes)
    source, sink = contents_of(sizes, rng), MemoryBlobs()
    blobs = list(source.contents)
    pushed = await send(to, source, tls)
    assert pushed.arrived == set(blobs)
    assert pushed.failed == {}
    assert to.store.contents == source.contents
    pulled = await receive(to, blobs[::-1], sink, tls)
    assert pulled.arrived == set(blobs)
    assert sink.contents == source.contents


async def test_a_server_with_certificates_takes_a_session_in_the_clear_when_it_was_granted_so(
    secure: Server, certificates: Certificates
) -> None:
    source = holding([b"0123"])
    blobs = list(source.contents)
    grant = secure.grant(Direction.PUSH, blobs, caller="a", encrypted=False)
    receipt = await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))
    assert receipt.arrived == set(blobs)


@pytest.mark.parametrize("size", [100, 3 << 20])
async def test_a_file_that_became_shorter_or_other_is_found_by_the_receiver(server: Server, size: int) -> None:
    blob = hash_bytes(bytes(size))
    other = hash_bytes(b"fine")
    for wrong in (b"1" + bytes(size - 1), b"1" * (size // 2)):
        source = ReadsAsItIs({blob: wrong, other: b"fine"})
        receipt = await push(
            server.grant(Direction.PUSH, [blob, other]), [blob, other], source, no_progress, trio.CapacityLimiter(1)
        )
        assert receipt.arrived == {other}
        assert isinstance(receipt.failed[blob], Damaged)
        assert receipt.torn == {blob}
        assert server.store.contents == {other: b"fine"}


class ReadsAsItIs:
    """A source that does not look at what it opens."""

    def __init__(self, contents: dict[Blob, bytes]) -> None:
        self.contents = contents

    def open(self, blob: Blob) -> int:
        fd = os.memfd_create(blob.name)
        os.write(fd, self.contents[blob])
        return fd


class PartlyUnreadable:
    """A source that can be read, but for one file."""

    def __init__(self, unreadable: Unreadable, size: int, others: MemoryBlobs) -> None:
        self._unreadable = unreadable
        self._size = size
        self._others = others

    def open(self, blob: Blob) -> int:
        if blob == self._unreadable.blob(self._size):
            return self._unreadable.open(self._size, self._size // 2)
        return self._others.open(blob)


@pytest.mark.fuse
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("size", [8192, 3 << 20], ids=["small", "large"])
async def test_a_file_that_the_sender_cannot_read_is_found_by_the_receiver_and_the_rest_arrives(
    unreadable: Unreadable, certificates: Certificates, size: int, encrypted: bool
) -> None:
    before, after = holding([b"before"]), holding([b"after"])
    readable = MemoryBlobs()
    readable.contents = before.contents | after.contents
    blobs = [*before.contents, unreadable.blob(size), *after.contents]
    source, sink = PartlyUnreadable(unreadable, size, readable), MemoryBlobs()
    own, theirs = (certificates.a, certificates.b) if encrypted else (None, None)
    async with running_server(theirs, source=source) as server:
        pulled = await receive(server, blobs, sink, own)
        assert isinstance(pulled.failed[unreadable.blob(size)], Damaged)
        assert sink.contents == readable.contents
        pushed = await push(
            server.grant(Direction.PUSH, blobs, own), blobs, source, no_progress, trio.CapacityLimiter(1)
        )
        assert pushed.torn == {unreadable.blob(size)}
        assert server.store.contents == readable.contents


async def test_what_a_source_lacks_and_what_does_not_fit_is_told_and_the_rest_arrives() -> None:
    here, absent, large = (hash_bytes(content) for content in (b"here", b"absent", b"x" * 2_000_000))
    source = holding([b"here", b"x" * 2_000_000])
    small = MemoryBlobs(capacity=1000)
    async with running_server(sink=small) as server:
        blobs = [large, absent, here]
        receipt = await push(server.grant(Direction.PUSH, blobs), blobs, source, no_progress, trio.CapacityLimiter(1))
        assert receipt.arrived == {here}
        assert isinstance(receipt.failed[absent], NotFound)
        assert isinstance(receipt.failed[large], TierFull)
        server.store.contents |= source.contents
        pulled = await receive(server, blobs, MemoryBlobs(capacity=1000))
        assert pulled.arrived == {here}
        assert isinstance(pulled.failed[absent], NotFound)
        assert isinstance(pulled.failed[large], TierFull)
