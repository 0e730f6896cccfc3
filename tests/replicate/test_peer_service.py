"""What a peer may ask of a node, and what it is refused; over the wire it is in tests/tiers/test_peer.py."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import MAX_BLOB_SIZE, Blob
from fuse_tier.epochs import number_before
from fuse_tier.errors import InvalidRequest, NotAuthorized, SnapshotConflict, TierFull, TierRefused
from fuse_tier.hashing import hash_bytes
from fuse_tier.manifest import encode
from fuse_tier.members import Member
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.peer_service import PeerService, decode_blobs
from fuse_tier.tiers.expected import Expected
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk.format import MAX_ASKED_BLOBS, MAX_SESSION_BLOBS, encode_blob
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.members import PROTOCOL
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding, keep, manifest_of

SOMEBODY = Caller(None, "127.0.0.1:50000")
OWN = Member("b", "b-1", "127.0.0.1:1", "127.0.0.1:2", True, 1000, 500)


@pytest.fixture
def ram(memory_path: Path) -> RamTier:
    layout = Layout(str(memory_path))
    create_directories(layout)
    return RamTier(layout, "b")


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def service(ram: RamTier, sessions: Sessions) -> PeerService:
    return PeerService(ram, sessions, lambda: OWN, "test", secure=True, encrypt=False)


def hello(**changes: Any) -> pb.HelloRequest:
    fields: dict[str, Any] = {"protocol": PROTOCOL, "cluster": "test", "node": "a", "instance": "a-1"}
    return pb.HelloRequest(**fields | changes)


async def test_hello_tells_what_the_node_says_of_itself(service: PeerService) -> None:
    reply = await service.Hello(hello(), SOMEBODY)
    assert (reply.node, reply.instance, reply.bulk, reply.free_bytes) == ("b", "b-1", "127.0.0.1:2", 500)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"node": "../b"}, InvalidRequest, "no valid name"),
        ({"node": ""}, InvalidRequest, "no valid name"),
        ({"instance": "x\n"}, InvalidRequest, "no valid name"),
        ({"protocol": 0}, TierRefused, "run versions of one major protocol"),
        ({"cluster": ""}, TierRefused, "belongs to cluster 'test', and a to ''"),
    ],
)
async def test_hello_refuses_whom_it_can_not_work_with(
    service: PeerService, expected_logs: ExpectedLogs, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    expected_logs.allow("peer.refused")
    with pytest.raises(kind, match=words):
        await service.Hello(hello(**changes), SOMEBODY)


async def test_a_node_is_who_its_certificate_says(service: PeerService, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("peer.refused")
    await service.Hello(hello(node="a"), Caller("a", "127.0.0.1:1"))
    with pytest.raises(NotAuthorized, match="the certificate is of node 'c', and it says that it is 'a'"):
        await service.Hello(hello(node="a"), Caller("c", "127.0.0.1:1"))


BAD_BLOBS = [
    [b""],
    [b"x" * 23],
    [b"x" * 25],
    [bytes(16) + b"\xff" * 8],  # a size that no file has
    [encode_blob(hash_bytes(b"a")), b"short"],
    [encode_blob(hash_bytes(b"a"))] * 2,
]


@pytest.mark.parametrize("blobs", BAD_BLOBS)
async def test_blobs_that_are_none_are_refused(service: PeerService, sessions: Sessions, blobs: list[bytes]) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        partial(service.Missing, pb.BlobList(blobs=blobs), SOMEBODY),
        partial(service.OpenPush, pb.PushRequest(blobs=blobs), SOMEBODY),
        partial(service.OpenPull, pb.PullRequest(blobs=blobs), SOMEBODY),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            await call()


async def test_a_session_has_limits(service: PeerService) -> None:
    blobs = [encode_blob(Blob(number.to_bytes(16), 0)) for number in range(MAX_SESSION_BLOBS + 1)]
    with pytest.raises(InvalidRequest, match="4097 blobs in one call are more than the 4096"):
        await service.OpenPush(pb.PushRequest(blobs=blobs), SOMEBODY)
    with pytest.raises(InvalidRequest):
        await service.OpenPull(pb.PullRequest(blobs=blobs), SOMEBODY)
    assert len((await service.Missing(pb.BlobList(blobs=blobs), SOMEBODY)).blobs) == MAX_SESSION_BLOBS + 1


async def test_so_much_may_be_asked_for_in_one_call_and_no_more(service: PeerService) -> None:
    blobs = [encode_blob(Blob(number.to_bytes(16), 0)) for number in range(MAX_ASKED_BLOBS + 1)]
    assert len((await service.Missing(pb.BlobList(blobs=blobs[1:]), SOMEBODY)).blobs) == MAX_ASKED_BLOBS
    with pytest.raises(InvalidRequest, match="16385 blobs in one call are more than the 16384"):
        await service.Missing(pb.BlobList(blobs=blobs), SOMEBODY)


async def test_what_the_first_session_of_a_slow_transfer_brought_stays_until_the_last_is_over(
    ram: RamTier, sessions: Sessions
) -> None:
    now = 0.0
    tier = RamTier(ram.layout, "b", Expected(lambda: now))
    service = PeerService(tier, sessions, lambda: OWN, "test", secure=False, encrypt=False)
    source = holding([b"0123", b"4567"])
    first, second = (encode_blob(blob) for blob in source.contents)
    await service.Missing(pb.BlobList(blobs=[first, second]), SOMEBODY)
    for number, part in enumerate((first, second, second)):
        now = 500.0 * number
        await service.OpenPush(pb.PushRequest(blobs=[part], may_leave_out=True), SOMEBODY)
        await tier.store(list(source.contents)[:1], source)
    written = os.stat(tier.layout.blob(next(iter(source.contents)))).st_ctime
    while time.time() < written + 0.1:
        await trio.lowlevel.checkpoint()
    assert await tier.collect(0.05) == 0
    now += 1000.0  # and the sender has gone
    assert await tier.collect(0.05) == 4


async def test_asking_who_else_has_something_keeps_nothing(service: PeerService, ram: RamTier) -> None:
    source = holding([b"0123"])
    await ram.store(source.contents.keys(), source)
    request = pb.ReferRequest(blobs=map(encode_blob, source.contents), node="a")
    assert not (await service.Refer(request, SOMEBODY)).referrals
    deadline = trio.current_time() + 30
    while await ram.collect(0.01) == 0:
        assert trio.current_time() < deadline
        await trio.lowlevel.checkpoint()


async def test_a_session_is_for_its_caller_and_its_blobs(service: PeerService, sessions: Sessions) -> None:
    blob, caller = hash_bytes(b"0123"), Caller("a", "127.0.0.1:1")
    pushing = await service.OpenPush(pb.PushRequest(blobs=[encode_blob(blob)], encrypt=True), caller)
    assert sessions.redeem(pushing.token, "a", encrypted=True) == Session("a", Direction.PUSH, (blob,), True)
    pulling = await service.OpenPull(pb.PullRequest(blobs=[encode_blob(blob)]), caller)
    assert not pulling.encrypted
    assert sessions.redeem(pulling.token, None, encrypted=False) == Session("a", Direction.PULL, (blob,), False)


async def test_a_node_without_certificates_encrypts_nothing(ram: RamTier, sessions: Sessions) -> None:
    service = PeerService(ram, sessions, lambda: OWN, "test", secure=False, encrypt=True)
    session = await service.OpenPush(pb.PushRequest(encrypt=True), SOMEBODY)
    assert not session.encrypted


async def test_for_what_there_is_no_room_some_is_made_first(ram: RamTier, sessions: Sessions) -> None:
    wanted: list[int] = []

    async def make_room(size: int) -> int:
        wanted.append(size)
        return 2 * size

    service = PeerService(ram, sessions, lambda: OWN, "test", secure=True, encrypt=False, make_room=make_room)
    size = ram.capacity_bytes()
    assert (await service.OpenPush(pb.PushRequest(blobs=[encode_blob(Blob(bytes(16), size))]), SOMEBODY)).token
    assert wanted[0] >= size


@pytest.mark.parametrize("count", [1, 3])
async def test_what_there_is_no_room_for_is_not_begun(service: PeerService, ram: RamTier, count: int) -> None:
    part = ram.free_bytes() // count
    blobs = [encode_blob(Blob(number.to_bytes(16), part)) for number in range(count)]
    with pytest.raises(TierFull, match=rf"the ram of b has room for \d+ bytes, and {part * count} are offered"):
        await service.OpenPush(pb.PushRequest(blobs=blobs), SOMEBODY)
    many = [encode_blob(Blob(number.to_bytes(16), MAX_BLOB_SIZE)) for number in range(100)]
    with pytest.raises(TierFull):
        await service.OpenPush(pb.PushRequest(blobs=many), SOMEBODY)


@pytest.mark.parametrize("text", ["", "x", "default/llama/0", "default/llama/0@0", "../../etc@1", "a/b/../c@1"])
async def test_ids_that_are_none_are_refused(service: PeerService, text: str) -> None:
    with pytest.raises(InvalidRequest):
        await service.Manifest(pb.SnapshotRequest(id=text), SOMEBODY)
    with pytest.raises(InvalidRequest):
        await service.Drop(pb.SnapshotRequest(id=text), SOMEBODY)


async def test_what_this_node_has_mounted_no_other_gives_up(
    ram: RamTier, sessions: Sessions, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.refused")
    kept = await keep(ram, {"weights": b"0123"})
    own = replace(OWN, mounted=frozenset({kept.id.identity}))
    service = PeerService(
        ram, sessions, lambda: own, "test", secure=True, encrypt=False, mounted_on=lambda identity: {"a"}
    )
    with pytest.raises(NotAuthorized, match="a and b has its volume mounted"):
        await service.Drop(pb.SnapshotRequest(id=str(kept.id)), Caller("a", "127.0.0.1:1"))
    assert list(await ram.snapshots()) == [kept.id]


async def test_without_certificates_nobody_can_be_told_apart(service: PeerService, ram: RamTier) -> None:
    kept = await keep(ram, {"weights": b"0123"})
    await service.Drop(pb.SnapshotRequest(id=str(kept.id)), SOMEBODY)
    assert list(await ram.snapshots()) == []


@pytest.mark.parametrize("text", ["x", "a/b", "../../etc", "a/b/c/d", "a/b/c@1"])
async def test_identities_that_are_none_are_refused(service: PeerService, text: str) -> None:
    with pytest.raises(InvalidRequest):
        await service.Snapshots(pb.SnapshotsRequest(identity=text), SOMEBODY)
    with pytest.raises(InvalidRequest):
        await service.Verify(pb.VerifyRequest(identity=text), SOMEBODY)


async def test_a_manifest_that_breaks_the_format_is_refused_whole(service: PeerService, ram: RamTier) -> None:
    manifest = await keep(ram, {"weights": b"0123"})
    text = encode(manifest)
    for wrong in (b"", text[:-1], text.replace(b"weights", b"weighed"), text + b"\n", bytes(1000)):
        with pytest.raises(InvalidRequest, match="the manifest that was to be committed is refused"):
            await service.Commit(pb.ManifestText(text=wrong), SOMEBODY)
    assert list(await ram.snapshots()) == [manifest.id]


async def test_another_snapshot_of_a_number_is_a_conflict_that_tells_the_highest(
    service: PeerService, ram: RamTier
) -> None:
    await keep(ram, {"weights": b"0123"}, 4)
    other = manifest_of({"weights": b"4567"}, 4)
    await ram.store(other.blobs, holding([b"4567"]))
    with pytest.raises(SnapshotConflict) as caught:
        await service.Commit(pb.ManifestText(text=encode(other)), SOMEBODY)
    assert caught.value.highest == 4


async def test_what_an_owner_before_the_one_that_is_listed_saved_is_refused(
    service: PeerService, ram: RamTier
) -> None:
    await keep(ram, {"weights": b"0123"}, number_before(8) + 1)
    earlier = manifest_of({"weights": b"0123"}, number_before(7) + 4001)
    with pytest.raises(SnapshotConflict, match="of epoch 7 and is refused") as caught:
        await service.Commit(pb.ManifestText(text=encode(earlier)), SOMEBODY)
    assert caught.value.highest == number_before(8) + 1
    await keep(ram, {"weights": b"4567"}, number_before(9) + 1)


@pytest.mark.parametrize("grace", [0.0, -1.0, math.nan, -math.inf])
async def test_no_peer_can_have_collected_what_others_have_just_sent(
    service: PeerService, ram: RamTier, grace: float
) -> None:
    source = holding([b"0123"])
    await ram.store(source.contents.keys(), source)
    assert (await service.Collect(pb.CollectRequest(grace_seconds=grace), SOMEBODY)).freed_bytes == 0
    assert await ram.missing(source.contents.keys()) == set()


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_a_list_of_blobs_is_read_whole_or_refused(encoded: list[bytes]) -> None:
    try:
        blobs = decode_blobs(encoded, 5)
    except InvalidRequest:
        return
    assert list(map(encode_blob, blobs)) == encoded
