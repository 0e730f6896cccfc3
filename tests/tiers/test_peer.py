"""A peer's RAM over real control calls and bulk streams on loopback."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import Blob, Incoming
from fuse_tier.errors import TierFull, TierRefused, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.tiers.peer import Introduction, PeerTier
from fuse_tier.tiers.peer_sessions import batches, largest_first
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire import grpc
from fuse_tier.wire.bulk.format import MAX_SESSION_BLOBS
from fuse_tier.wire.bulk.sessions import Direction, Session
from fuse_tier.wire.control_pb2_grpc import add_PeerServicer_to_server
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.members import PROTOCOL
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import LLAMA, check_producible, holding, keep
from tests.tiers.contract import TierContract
from tests.wire.certificates import Certificates, make_certificates
from tests.wire.peers import CLUSTER, OWN, Peer, running_peer


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


class PeerContract(TierContract):
    announced = ("blob.damaged", "ram.manifests_unreadable")
    peer: ClassVar[Peer]

    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        path = Path(self.peer.layout.blob(blob))
        path.unlink()
        path.write_bytes(content)

    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        Path(self.peer.layout.manifest(snapshot)).write_bytes(text)


class TestPeerTierInTheClear(PeerContract):
    @pytest.fixture
    async def tier(self, memory_path: Path) -> AsyncIterator[Tier]:
        async with running_peer(memory_path) as peer, aclosing(peer.tier()) as tier:
            type(self).peer = peer
            yield tier


class TestPeerTierUnderTls(PeerContract):
    @pytest.fixture
    async def tier(self, memory_path: Path, certificates: Certificates) -> AsyncIterator[Tier]:
        async with running_peer(memory_path, certificates.b) as peer, aclosing(peer.tier(certificates.a)) as tier:
            type(self).peer = peer
            yield tier


@pytest.fixture
async def peer(memory_path: Path) -> AsyncIterator[Peer]:
    async with running_peer(memory_path) as peer:
        yield peer


@pytest.fixture
async def tier(peer: Peer) -> AsyncIterator[PeerTier]:
    async with aclosing(peer.tier()) as tier:
        yield tier


# ---- whom it talks to ----


async def test_a_peer_says_who_it_is(peer: Peer, tier: PeerTier) -> None:
    reply = await tier.hello()
    assert (reply.node, reply.cluster, reply.protocol, reply.bulk) == ("b", CLUSTER, PROTOCOL, peer.bulk)
    assert tier.place == f"peer b ({peer.control})"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (replace(OWN, cluster="other"), "belongs to cluster 'test', and a to 'other'"),
        (Introduction(CLUSTER, "b", "b-2"), "has this node's name 'b'.*give one of them another name"),
        (Introduction(CLUSTER, "b", "b-1"), "is this node itself"),
    ],
    ids=["other cluster", "same name", "itself"],
)
async def test_a_peer_that_it_can_not_work_with_is_refused_before_anything_is_asked_of_it(
    peer: Peer, expected_logs: ExpectedLogs, own: Introduction, words: str
) -> None:
    expected_logs.allow("peer.refused")
    async with aclosing(PeerTier(None, peer.control, own, None)) as tier:
        for call in (tier.snapshots, partial(tier.missing, [hash_bytes(b"x")]), partial(keep, tier, {"a": b"1"})):
            with pytest.raises(TierRefused, match=words):
                await call()
    assert list(await peer.ram.snapshots()) == []


async def test_a_node_other_than_the_expected_one_is_refused(peer: Peer) -> None:
    async with aclosing(PeerTier("c", peer.control, OWN, None)) as tier:
        with pytest.raises(TierRefused, match=r"peer c .* is node 'b'"):
            await tier.snapshots()


class FromTheFuture:
    """A node of another major version, and of no manners: it answers whoever asks."""

    def __init__(self, reply: pb.HelloReply) -> None:
        self.reply = reply
        self.calls: list[str] = []

    async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802
        return self.reply

    async def Snapshots(self, request: pb.SnapshotsRequest, caller: Caller) -> pb.SnapshotsReply:  # noqa: N802
        self.calls.append("Snapshots")
        return pb.SnapshotsReply(ids=["../../etc/passwd@1"])

    async def Missing(self, request: pb.BlobList, caller: Caller) -> pb.BlobList:  # noqa: N802
        return pb.BlobList(blobs=[b"no blob"])


@pytest.fixture
async def stranger() -> AsyncIterator[tuple[FromTheFuture, str]]:
    servicer = FromTheFuture(
        pb.HelloReply(protocol=PROTOCOL, cluster=CLUSTER, node="b", instance="b-1", version="9.0", bulk="127.0.0.1:1")
    )
    async with trio.open_nursery() as nursery:
        services = [(add_PeerServicer_to_server, servicer)]
        port = await nursery.start(partial(grpc.serve, services, "127.0.0.1:0", None))
        yield servicer, f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": PROTOCOL + 1}, r"runs fuse-tier 9\.0 with protocol 2.*run versions of one major protocol"),
        ({"cluster": "other"}, "belongs to cluster 'other', and this node to 'test'"),
    ],
)
async def test_another_version_or_cluster_is_refused_even_if_it_would_not_mind(
    stranger: tuple[FromTheFuture, str], change: dict[str, object], words: str
) -> None:
    servicer, address = stranger
    for name, value in change.items():
        setattr(servicer.reply, name, value)
    async with aclosing(PeerTier("b", address, OWN, None)) as tier:
        with pytest.raises(TierRefused, match=words):
            await tier.snapshots()
    assert servicer.calls == []


async def test_answers_that_make_no_sense_are_refused(stranger: tuple[FromTheFuture, str]) -> None:
    async with aclosing(PeerTier("b", stranger[1], OWN, None)) as tier:
        with pytest.raises(TierRefused, match="lists what is no snapshot"):
            await tier.snapshots()
        with pytest.raises(TierRefused, match="names what is no blob"):
            await tier.missing([hash_bytes(b"x")])


async def test_a_peer_that_is_down_may_be_back_later(memory_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    async with aclosing(PeerTier("b", address, OWN, None)) as tier:
        blob = hash_bytes(b"0123")
        for call in (
            partial(tier.missing, [blob]),
            partial(tier.store, [blob], holding([b"0123"])),
            partial(tier.fetch, [blob], MemoryBlobs()),
            partial(tier.drop, SnapshotId(LLAMA, 1)),
        ):
            with pytest.raises(TierUnavailable, match=f"{address} does not answer: connection refused"):
                await call()


async def test_a_bulk_port_that_does_not_answer_is_told_with_its_address(peer: Peer, tier: PeerTier) -> None:
    await tier.store([hash_bytes(b"0123")], holding([b"0123"]))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peer.addresses["bulk"] = f"127.0.0.1:{unused.getsockname()[1]}"
    async with aclosing(peer.tier()) as other:
        with pytest.raises(TierUnavailable, match=f"{peer.addresses['bulk']} does not answer: connection refused"):
            await other.fetch([hash_bytes(b"0123")], MemoryBlobs())
        peer.addresses["bulk"] = peer.bulk
        assert (await other.fetch([hash_bytes(b"0123")], MemoryBlobs())).arrived


# ---- certificates ----


@pytest.mark.parametrize("bad", ["expired", "intruder", "stranger"])
async def test_a_node_with_a_bad_certificate_gets_nowhere(
    memory_path: Path, certificates: Certificates, expected_logs: ExpectedLogs, bad: str
) -> None:
    expected_logs.allow("control.connection_refused")
    async with (
        running_peer(memory_path, certificates.b) as peer,
        aclosing(peer.tier(getattr(certificates, bad))) as tier,
    ):
        await expect(TierUnavailable, "certificate", tier.snapshots)


async def test_a_node_without_a_certificate_gets_nowhere(
    memory_path: Path, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("control.connection_refused")
    async with running_peer(memory_path, certificates.b) as peer, aclosing(peer.tier(None)) as tier:
        await expect(TierUnavailable, "does not take our certificate", tier.snapshots)


async def test_a_node_that_takes_another_ones_name_is_refused(
    memory_path: Path, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.refused")
    liar = Introduction(CLUSTER, "c", "c-1")
    async with (
        running_peer(memory_path, certificates.b) as peer,
        aclosing(peer.tier(certificates.a, own=liar)) as tier,
    ):
        await expect(TierRefused, "the certificate is of node 'a', and it says that it is 'c'", tier.snapshots)


@pytest.mark.parametrize(("ours", "theirs"), [(False, False), (True, False), (False, True)])
async def test_content_is_encrypted_when_either_node_wants_it(
    memory_path: Path, certificates: Certificates, expected_logs: ExpectedLogs, ours: bool, theirs: bool
) -> None:
    async with (
        running_peer(memory_path, certificates.b, encrypt=theirs) as peer,
        aclosing(peer.tier(certificates.a, encrypt=ours)) as tier,
    ):
        await keep(tier, {"weights": b"0123"})
        await check_producible(tier)


async def expect(kind: type[Exception], words: str, call: object) -> None:
    """Within nurseries, where an error that is not caught at once comes in a group."""
    with pytest.raises(kind, match=words):
        await call()  # type: ignore[operator]


# ---- content ----


async def test_storing_what_is_there_already_opens_no_session(peer: Peer, tier: PeerTier) -> None:
    source = holding([b"0123", b"4567"])
    await tier.store(source.contents.keys(), source)
    peer.addresses["bulk"] = "127.0.0.1:1"
    async with aclosing(peer.tier()) as other:
        await other.store(source.contents.keys(), MemoryBlobs())


async def test_more_files_than_a_session_may_have_are_stored_and_come_back(peer: Peer, tier: PeerTier) -> None:
    source, sink = holding(b"%d" % number for number in range(2 * MAX_SESSION_BLOBS + 5)), MemoryBlobs()
    await tier.store(source.contents.keys(), source)
    assert (await tier.fetch(source.contents.keys(), sink)).failed == {}
    assert sink.contents == source.contents


async def test_a_full_peer_says_so_and_keeps_nothing_of_it(peer: Peer, tier: PeerTier) -> None:
    large = Blob(bytes(16), 1 << 50)
    with pytest.raises(TierFull, match="the ram of b has room for"):
        await tier.store([large], MemoryBlobs())
    assert os.listdir(peer.layout.incoming) == []


class WrittenMeanwhile(MemoryBlobs):
    """Shows a writer's bytes the first time, as a live file does until its content has been copied away."""

    def __init__(self, torn: Blob) -> None:
        super().__init__()
        self.torn: Blob | None = torn

    def open(self, blob: Blob) -> int:
        if blob != self.torn:
            return super().open(blob)
        self.torn = None
        fd = os.memfd_create("torn")
        os.write(fd, bytes(blob.size))
        return fd


async def test_content_that_a_job_writes_to_while_it_is_sent_is_sent_once_more(peer: Peer, tier: PeerTier) -> None:
    blob = hash_bytes(b"0123")
    source = WrittenMeanwhile(blob)
    source.contents = {blob: b"0123", hash_bytes(b"4567"): b"4567"}
    await tier.store(source.contents.keys(), source)
    assert await peer.ram.missing(source.contents.keys()) == set()


async def test_a_peer_verifies_what_it_lists(peer: Peer, tier: PeerTier, expected_logs: ExpectedLogs) -> None:
    manifest = await keep(tier, {"weights": b"0123", "optimizer": b"4567"})
    report = await tier.verify(LLAMA)
    assert (report.snapshots, report.blobs, report.bytes, report.damaged) == (1, 2, 8, ())
    expected_logs.allow(".*damaged.*")
    Path(peer.layout.blob(min(manifest.blobs))).write_bytes(b"012X")
    (line,) = (await tier.verify()).damaged
    assert min(manifest.blobs).name in line


@given(st.lists(st.integers(0, 1 << 30), max_size=300))
def test_sessions_hold_every_blob_once_within_their_limits(sizes: list[int]) -> None:
    blobs = {Blob(number.to_bytes(16), size) for number, size in enumerate(sizes)}
    ordered = largest_first(blobs)
    assert [blob.size for blob in ordered] == sorted(sizes, reverse=True)
    found = list(batches(ordered))
    assert [blob for batch in found for blob in batch] == ordered
    for batch in found:
        assert 1 <= len(batch) <= MAX_SESSION_BLOBS
        assert len(batch) == 1 or sum(blob.size for blob in batch) <= 256 << 20


async def test_what_is_fetched_comes_in_the_order_in_which_it_is_asked_for(
    peer: Peer, tier: PeerTier, rng: random.Random
) -> None:
    class Noting(MemoryBlobs):
        def create(self, blob: Blob) -> Incoming:
            came.append(blob)
            return super().create(blob)

    came: list[Blob] = []
    contents = [rng.randbytes(rng.randrange(1, 100_000)) for _ in range(20)]
    await keep(tier, {str(number): content for number, content in enumerate(contents)})
    wanted = [hash_bytes(content) for content in contents]
    rng.shuffle(wanted)
    assert not (await tier.fetch(wanted, Noting())).failed
    assert came == wanted


class Held(MemoryBlobs):
    """A sink that takes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.is_asked_by_two = trio.Event()
        self.may = threading.Event()

    def create(self, blob: Blob) -> Incoming:
        trio.from_thread.run_sync(self._note)
        assert self.may.wait(60)
        return super().create(blob)

    def _note(self) -> None:
        self.asked += 1
        if self.asked == 2:
            self.is_asked_by_two.set()


async def test_one_file_that_somebody_waits_for_does_not_queue_behind_much(peer: Peer, tier: PeerTier) -> None:
    source, held, sink = holding(bytes([number]) * 1000 for number in range(10)), Held(), MemoryBlobs()
    await tier.store(source.contents.keys(), source)
    *much, one = source.contents
    async with trio.open_nursery() as nursery:
        for start in range(0, 9, 3):  # more than go at once
            nursery.start_soon(tier.fetch, much[start : start + 3], held)
        await held.is_asked_by_two.wait()
        try:
            fetched = await tier.fetch([one], sink)
        finally:
            held.may.set()
    assert fetched.arrived == sink.contents.keys() == {one}
    assert held.contents.keys() == set(much)


async def test_content_that_several_nodes_bring_at_once_is_sent_once(
    peer: Peer, tier: PeerTier, rng: random.Random
) -> None:
    shared, sent = [rng.randbytes(1 << 20) for _ in range(8)], 0

    def count(moved: int) -> None:
        nonlocal sent
        sent += moved

    async def bring(node: str) -> None:
        source = holding([*shared, node.encode()])
        async with aclosing(peer.tier(own=Introduction(CLUSTER, node, f"{node}-1"))) as own:
            await own.store(source.contents.keys(), source, count)
            assert await peer.ram.missing(source.contents.keys()) == set()

    async with trio.open_nursery() as nursery:
        for node in ("c", "d", "e", "f"):
            nursery.start_soon(bring, node)
    assert sent == (8 << 20) + 4


async def test_what_another_node_began_to_send_and_did_not_end_is_sent_by_the_next(
    peer: Peer, tier: PeerTier
) -> None:
    source = holding([b"0123"])
    (blob,) = source.contents
    session = Session(None, Direction.PUSH, (blob,), encrypted=False)
    token = peer.sessions.grant(session)
    assert peer.sessions.is_coming(blob)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tier.store, [blob], source)
        await trio.testing.wait_all_tasks_blocked(0.1)
        peer.sessions.redeem(token, None, encrypted=False)
        peer.sessions.ended(session)
    assert await peer.ram.missing([blob]) == set()
