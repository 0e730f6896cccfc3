"""Nodes of the next and of the previous minor version work together; one of another major version is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from fuse_tier.errors import TierRefused
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import Domain, Member
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.peer_service import PeerService
from fuse_tier.restarts import Question
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.tiers.peer import PeerTier
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk.client import Grant, push
from fuse_tier.wire.bulk.format import encode_blob
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Sessions
from fuse_tier.wire.control_pb2_grpc import PeerStub, add_PeerServicer_to_server
from fuse_tier.wire.grpc import Caller, Client, serve
from fuse_tier.wire.members import MINOR, PROTOCOL, hello_from_wire
from fuse_tier.wire.restarts import question_from_wire, question_to_wire
from tests.harness.snapshots import check_producible, holding, keep
from tests.wire.peers import CLUSTER, OWN, running_peer
from tests.wire.proxies import cutting

NEW_SINCE_MINOR_0 = {"minor", "may_leave_out", "begun", "left_out", "domain"}
FROM_THE_FUTURE = b"\xfa\x7f\x05later"  # field 2047, five bytes


def as_before(message: Any) -> Any:
    """A message as a node of minor version 0 writes and reads it."""
    for name in NEW_SINCE_MINOR_0 & set(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)
    return message


def with_more(message: Any) -> Any:
    """A message as a node of a later minor version writes it."""
    message.MergeFromString(FROM_THE_FUTURE)
    if "minor" in message.DESCRIPTOR.fields_by_name:
        message.minor = MINOR + 1
    return message


class OtherMinor:
    """A peer's service whose messages are those of another minor version."""

    def __init__(self, service: PeerService, change: Callable[[Any], Any]) -> None:
        self._service = service
        self._change = change

    def __getattr__(self, name: str) -> Callable[[Any, Caller], Awaitable[Any]]:
        method = getattr(self._service, name)

        async def call(request: Any, caller: Caller) -> Any:
            return self._change(await method(self._change(request), caller))

        call.__name__ = name
        return call


@asynccontextmanager
async def peer_of_another_minor(
    root: Path, change: Callable[[Any], Any]
) -> AsyncIterator[tuple[PeerTier, dict[str, str]]]:
    layout = Layout(str(root))
    create_directories(layout)
    ram, sessions, addresses = RamTier(layout, "b"), Sessions(), {"bulk": ""}

    def own() -> Member:
        return Member("b", "b-1", "", addresses["bulk"], True, 1 << 40, 1 << 39, Domain("z1", "p1", "h1"))

    service = PeerService(ram, sessions, own, CLUSTER, secure=False, encrypt=False, smallest_grace_seconds=0.0)
    async with trio.open_nursery() as nursery:
        bulk = await nursery.start(partial(serve_bulk, "127.0.0.1:0", sessions, ram, ram, None))
        addresses["bulk"] = f"127.0.0.1:{bulk}"
        services = [(add_PeerServicer_to_server, OtherMinor(service, change))]
        control = await nursery.start(partial(serve, services, "127.0.0.1:0", None))
        async with aclosing(PeerTier("b", f"127.0.0.1:{control}", OWN, None)) as tier:
            yield tier, addresses
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("change", [as_before, with_more], ids=["previous", "next"])
async def test_a_peer_of_another_minor_version_keeps_copies_and_gives_them_back(
    memory_path: Path, change: Callable[[Any], Any]
) -> None:
    async with peer_of_another_minor(memory_path, change) as (tier, _):
        manifest = await keep(tier, {"weights": b"0123" * 100_000, "optimizer": b"4567"})
        await keep(tier, {"weights": b"0123" * 100_000, "optimizer": b"89"}, number=2)
        await check_producible(tier)
        await tier.drop(manifest.id)
        await tier.collect(0.0)
        await check_producible(tier)


@pytest.mark.parametrize(
    ("change", "domain"),
    [(as_before, Domain(host="127.0.0.1")), (with_more, Domain("z1", "p1", "h1"))],
    ids=["previous", "next"],
)
async def test_where_a_peer_stands_is_what_it_says_and_of_one_that_says_nothing_what_its_address_says(
    memory_path: Path, change: Callable[[Any], Any], domain: Domain
) -> None:
    async with peer_of_another_minor(memory_path, change) as (tier, _):
        member = hello_from_wire(await tier.hello(), "127.0.0.1:1", Domain(host="127.0.0.1"))
        assert member.domain == domain


async def test_with_a_peer_of_the_previous_minor_version_a_broken_transfer_begins_anew(memory_path: Path) -> None:
    source, sink = holding([bytes(12 << 20)]), MemoryBlobs()
    async with (
        peer_of_another_minor(memory_path, as_before) as (tier, addresses),
        cutting(addresses["bulk"], [9 << 20]) as proxy,
    ):
        addresses["bulk"] = proxy.address
        await tier.store(source.contents.keys(), source)
        assert (await tier.fetch(source.contents.keys(), sink)).arrived == source.contents.keys()
        assert sum(proxy.passed) > (9 + 12 + 12) << 20


async def test_a_node_of_the_previous_minor_version_is_served_as_it_was(memory_path: Path) -> None:
    source = holding([b"here", b"new"])
    here, new = source.contents
    async with running_peer(memory_path) as peer, Client(peer.control, PeerStub, None) as client:
        hello = pb.HelloRequest(protocol=PROTOCOL, cluster=CLUSTER, node="a", instance="a-1")
        reply = await client.call("Hello", hello, 5)
        await peer.ram.store([here], source)
        request = pb.PushRequest(blobs=[encode_blob(here), encode_blob(new)])
        session = await client.call("OpenPush", request, 5)
        assert list(session.left_out) == []  # it would not know what that means
        grant = Grant(reply.bulk, session.token, None)
        receipt = await push(grant, [here, new], source, lambda moved: None, trio.CapacityLimiter(1))
        assert receipt.arrived == {here, new}


async def test_a_node_of_another_major_version_has_no_calls_in_common_and_is_refused_so(memory_path: Path) -> None:
    """The protocol's package carries the major version."""

    class Stub:
        def __init__(self, channel: grpc.Channel) -> None:
            self.Hello = channel.unary_unary(
                f"/fuse_tier.v{PROTOCOL + 1}.Peer/Hello",
                request_serializer=pb.HelloRequest.SerializeToString,
                response_deserializer=pb.HelloReply.FromString,
            )

    async with running_peer(memory_path) as peer, Client(peer.control, Stub, None) as client:
        with pytest.raises(TierRefused, match="does not know the call Hello: it runs another version of fuse-tier"):
            await client.call("Hello", pb.HelloRequest(), 5)


def test_what_a_node_of_an_earlier_version_takes_for_damaged_is_no_reason_to_give_up_a_step() -> None:
    own, partner = (Identity("default", "llama", rank) for rank in "01")
    for lacking in ({"lacking": (3,)}, {"lacking_partners": (SnapshotId(partner, 3),)}):
        asked = Question(own, Lineage("llama", world_size=2), **lacking)
        message = question_to_wire(asked)
        assert question_from_wire(message) == asked
        message.ClearField("minor")
        with pytest.raises(TierRefused, match="is of an earlier version, which cannot read what later ones save"):
            question_from_wire(message)
        message.ClearField("lacking")
        message.ClearField("lacking_partners")
        assert question_from_wire(message).lacking == ()
