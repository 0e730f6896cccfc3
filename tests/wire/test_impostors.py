"""Nodes with a good certificate that answer where another one is called: they learn nothing, and nothing is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import metrics
from fuse_tier.errors import NotThatNode, TierUnavailable
from fuse_tier.ram.layout import Layout
from fuse_tier.tiers.base import no_progress
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire import impostors
from fuse_tier.wire.bulk.client import Grant, pull
from fuse_tier.wire.bulk.transfer import Receipt
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.control_pb2_grpc import PeerStub, add_PeerServicer_to_server
from fuse_tier.wire.grpc import Caller, Client, serve
from fuse_tier.wire.rejections import Rejections
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import check_producible, keep
from tests.wire.certificates import Certificates, self_made
from tests.wire.peers import Peer, running_peer


@pytest.fixture(autouse=True)
def nobody_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the host of these tests is told once a minute."""
    monkeypatch.setattr(impostors, "_rejections", Rejections("peer.impostor"))


@pytest.fixture
async def impostor(memory_path: Path, certificates: Certificates) -> AsyncIterator[Peer]:
    """Node ``a``, which says that it is ``b``."""
    async with running_peer(memory_path / "impostor", certificates.a, node="b") as peer:
        yield peer


def counted() -> float:
    labels = {"reason": "impostor"}
    return metrics.REGISTRY.get_sample_value("fuse_tier_rejected_connections_total", labels) or 0.0


def told_once(logs: ExpectedLogs, address: str) -> None:
    (line,) = [line for line in logs.heard if line.event == "peer.impostor"]
    assert f"address='{address}'" in line.text


def has_nothing(layout: Layout) -> bool:
    return not any(path.is_file() for path in Path(layout.root).rglob("*"))


async def test_nothing_is_brought_to_a_node_that_only_says_that_it_is_the_one_that_was_called(
    impostor: Peer, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.impostor")
    before = counted()
    async with aclosing(impostor.tier(certificates.a)) as tier:
        for _ in range(2):
            with pytest.raises(NotThatNode, match="none of node b"):
                await keep(tier, {"weights": b"0123"})
    assert counted() == before + 2
    told_once(expected_logs, impostor.control)
    assert has_nothing(impostor.layout)


async def test_no_token_is_shown_to_another_node_at_the_address_for_content(
    impostor: Peer, memory_path: Path, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.impostor")
    async with running_peer(memory_path / "b", certificates.b) as peer:
        genuine = peer.addresses["bulk"]
        async with aclosing(peer.tier(certificates.a)) as tier:
            peer.addresses["bulk"] = impostor.bulk
            with pytest.raises(TierUnavailable, match="none of node b"):
                await keep(tier, {"weights": b"0123"})
            told_once(expected_logs, impostor.bulk)
            peer.addresses["bulk"] = genuine
            await keep(tier, {"weights": b"other, since of those bytes a session is expected still"})
            await check_producible(tier)
    assert has_nothing(impostor.layout)


async def test_who_is_called_by_its_address_alone_may_be_any_node(
    impostor: Peer, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")  # it was let in, and its token is none
    async with Client(impostor.control, PeerStub, certificates.b) as client:
        request = pb.SnapshotsRequest()
        assert (await client.call("Snapshots", request, 5)).ids == []
    grant = Grant(impostor.bulk, bytes(32), certificates.b)
    threads = trio.CapacityLimiter(1)
    with pytest.raises(TierUnavailable, match="does not know the session"):
        await pull(grant, [], impostor.ram, no_progress, threads, Receipt())


async def test_a_certificate_that_was_made_otherwise_has_to_have_the_nodes_name(
    memory_path: Path, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.impostor")
    make_authority(str(tmp_path))
    own = make_certificate(str(tmp_path), "a")
    lacking = self_made(tmp_path, "b", "fuse-tier")
    async with running_peer(memory_path / "lacking", lacking) as peer, aclosing(peer.tier(own)) as tier:
        with pytest.raises(NotThatNode):
            await keep(tier, {"weights": b"0123"})
    whole = self_made(tmp_path, "b", "fuse-tier", "b")
    async with running_peer(memory_path / "whole", whole) as peer, aclosing(peer.tier(own)) as tier:
        await keep(tier, {"weights": b"0123"})
        await check_producible(tier)


@pytest.mark.parametrize("name", ["b", "10.0.0.1", "node_1", "A.b-c", "1", "b" * 64])
async def test_whatever_a_node_is_called_it_is_known_by_its_certificate(tmp_path: Path, name: str) -> None:
    class Servicer:
        async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802
            return pb.HelloReply(node=str(caller.node))

    make_authority(str(tmp_path))
    own, theirs = (make_certificate(str(tmp_path), one) for one in ("own", name))
    async with trio.open_nursery() as nursery:
        serving = partial(serve, [(add_PeerServicer_to_server, Servicer())], "127.0.0.1:0", theirs)
        address = f"127.0.0.1:{await nursery.start(serving)}"
        async with Client(address, PeerStub, own, name) as client:
            assert (await client.call("Hello", pb.HelloRequest(), 5)).node == "own"
        nursery.cancel_scope.cancel()
