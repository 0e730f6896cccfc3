"""What a worker learns of the others, and what it may mount: with a real coordinator, and with real peers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

from fuse_tier.config import CoordinatorConfig, NodeConfig
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.errors import FuseTierError, IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import LocalFacts, Member
from fuse_tier.replicate.membership import Membership, build_membership
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import add_PeerServicer_to_server
from fuse_tier.wire.grpc import Caller, serve
from fuse_tier.wire.members import PROTOCOL
from tests.harness.logs import ExpectedLogs

LEASE = 2.0
NOTHING = LocalFacts(1000, 500)
LLAMA = Identity.parse("default/llama/0")
GEMMA = Identity.parse("default/gemma/0")


@dataclass
class Node:
    """A membership, the facts that it reports, and a control port that answers as a worker's would."""

    config: NodeConfig
    membership: Membership
    facts: LocalFacts
    scope: trio.CancelScope
    ended: trio.Event = field(default_factory=trio.Event)

    async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802 - its wire name
        return pb.HelloReply(
            protocol=PROTOCOL,
            cluster=self.config.cluster,
            node=self.config.node,
            instance=self.membership.own().instance,
            bulk=str(self.config.listen.bulk),
            mounted=sorted(map(str, self.membership.mounted())),
            capacity_bytes=1000,
        )

    async def Snapshots(self, request: pb.SnapshotsRequest, caller: Caller) -> pb.SnapshotsReply:  # noqa: N802
        return pb.SnapshotsReply(
            ids=[
                f"{identity}@{number}"
                for identity, numbers in self.facts.holdings.items()
                if request.identity in ("", str(identity))
                for number in numbers
            ]
        )

    async def die(self) -> None:
        """Returns when its port takes no connections any more."""
        self.scope.cancel()
        await self.ended.wait()


class Cluster:
    """Nodes and a coordinator in this process, on real sockets."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._instances = 0
        self.coordinator = f"127.0.0.1:{free_ports(1)[0]}"
        self._coordinator_scope = trio.CancelScope()
        self._coordinator_ended = trio.Event()

    async def start_coordinator(self, **more: Any) -> None:
        config = CoordinatorConfig.model_validate({"listen": self.coordinator, "lease": LEASE, **more})
        self._coordinator_scope, self._coordinator_ended = trio.CancelScope(), trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with self._coordinator_scope:
                await serve_coordinator(config, task_status=task_status)
            self._coordinator_ended.set()

        await self._nursery.start(run)

    async def stop_coordinator(self) -> None:
        self._coordinator_scope.cancel()
        await self._coordinator_ended.wait()

    async def start(
        self, name: str, *, config: NodeConfig | None = None, facts: LocalFacts = NOTHING, **more: Any
    ) -> Node:
        config = config or self.configure(name, **more)
        self._instances += 1
        membership = build_membership(config, f"{name}{self._instances}", lambda: node.facts)
        node = Node(config, membership, facts, trio.CancelScope())

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with node.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(serve, [(add_PeerServicer_to_server, node)], str(config.listen.control), None)
                    await nursery.start(node.membership.run)
                    task_status.started()
            node.ended.set()

        await self._nursery.start(run)
        return node

    def configure(self, name: str, **more: Any) -> NodeConfig:
        control, bulk = free_ports(2)
        return NodeConfig.model_validate(
            {
                "node": name,
                "ram": {"path": "/nowhere", "size": "1MiB"},
                "socket": "/nowhere/node.sock",
                "listen": {"control": f"127.0.0.1:{control}", "bulk": f"127.0.0.1:{bulk}"},
                **({} if "peers" in more else {"coordinator": self.coordinator}),
                **more,
            }
        )


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raising(kind: type[FuseTierError], match: str) -> AsyncIterator[None]:
    """For what comes out of nurseries, in groups."""
    with pytest.raises(BaseExceptionGroup) as failed:
        yield
    assert failed.group_contains(kind, match=match)


async def until(membership: Membership, holds: Callable[[tuple[Member, ...]], bool]) -> tuple[Member, ...]:
    """Waits for a fact about the members."""
    version = -1
    while True:
        version = await membership.wait_changed(version)
        if holds(membership.members()):
            return membership.members()


# ---- with a coordinator ----


async def test_nodes_learn_of_each_other_and_not_of_themselves(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a = await cluster.start("a")
    b = await cluster.start("b", domain={"zone": "z", "pool": "p"})
    (seen,) = await until(a.membership, lambda members: len(members) == 1)
    assert (seen.node, seen.alive, seen.control) == ("b", True, str(b.config.listen.control))
    assert (seen.domain.zone, seen.domain.pool, seen.domain.host) == ("z", "p", "127.0.0.1")
    assert seen == b.membership.own()


async def test_a_node_that_dies_is_seen_to_be_gone(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("coordinator.node_gone")
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await until(a.membership, lambda members: bool(members) and members[0].alive)
    await b.die()
    await until(a.membership, lambda members: not members[0].alive)


async def test_what_is_mounted_on_a_live_node_cannot_be_claimed_on_another(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    assert a.membership.mounted() == {LLAMA}
    with pytest.raises(IdentityBusy, match="mounted on node a"):
        await b.membership.claim(LLAMA)
    assert b.membership.mounted() == frozenset()
    await a.membership.claim(LLAMA)
    await b.membership.claim(GEMMA)


async def test_what_was_released_can_be_claimed_elsewhere_at_once(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    await a.membership.release(LLAMA)
    await b.membership.claim(LLAMA)


async def test_a_claim_waits_until_the_lease_of_a_dead_holder_has_ended(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("coordinator.node_gone")
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    await a.die()
    await b.membership.claim(LLAMA)


async def test_a_node_that_leaves_is_not_waited_for(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await until(b.membership, lambda members: bool(members) and members[0].alive)
    await a.membership.leave()
    b.membership.report_soon()
    await until(b.membership, lambda members: not members[0].alive)


async def test_a_node_with_something_mounted_does_not_leave(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    await a.membership.leave()
    with pytest.raises(IdentityBusy):
        await b.membership.claim(LLAMA)


async def test_claims_outlive_the_coordinator(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.coordinator_unavailable")
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    await cluster.stop_coordinator()
    await cluster.start_coordinator()
    with pytest.raises(IdentityBusy, match="mounted on node a"):
        await b.membership.claim(LLAMA)
    await b.membership.claim(GEMMA)


async def test_without_the_coordinator_members_are_kept_and_nothing_new_can_be_claimed(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("membership.coordinator_unavailable")
    await cluster.start_coordinator()
    a = await cluster.start("a")
    await cluster.start("b")
    await until(a.membership, lambda members: bool(members))
    await cluster.stop_coordinator()
    with pytest.raises(TierUnavailable, match=f"coordinator at {cluster.coordinator} could not tell .*{LLAMA}"):
        await a.membership.claim(LLAMA)
    assert [(member.node, member.alive) for member in a.membership.members()] == [("b", True)]
    assert a.membership.mounted() == frozenset()


async def test_a_node_starts_without_its_coordinator_and_finds_it_later(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    a = await cluster.start("a")
    assert [line.event for line in expected_logs.unannounced()] == ["membership.coordinator_unavailable"]
    expected_logs.allow("membership.coordinator_unavailable")
    await cluster.start_coordinator()
    await cluster.start("b")
    await until(a.membership, lambda members: [member.node for member in members] == ["b"])


async def test_a_release_that_nobody_heard_is_made_up_for(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.coordinator_unavailable")
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    await cluster.stop_coordinator()
    await a.membership.release(LLAMA)
    await cluster.start_coordinator()
    await b.membership.claim(LLAMA)


async def test_a_second_node_of_one_name_ends_with_both_addresses(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("coordinator.report_refused")
    await cluster.start_coordinator()
    first = await cluster.start("a")
    second = cluster.configure("a")
    both = f"{first.config.listen.control}.*{second.listen.control}"
    async with raising(TierRefused, f"two nodes are called 'a': one at {both}"), trio.open_nursery() as nursery:
        await nursery.start(build_membership(second, "other", lambda: LocalFacts(1, 1)).run)


async def test_a_node_of_another_cluster_ends(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("coordinator.report_refused")
    await cluster.start_coordinator(cluster="blue")
    config = cluster.configure("a", cluster="green")
    async with raising(TierRefused, "'green', this coordinator of 'blue'"), trio.open_nursery() as nursery:
        await nursery.start(build_membership(config, "one", lambda: LocalFacts(1, 1)).run)


async def test_a_node_whose_name_is_taken_over_later_says_so_and_carries_on(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("coordinator.report_refused", "membership.refused")
    await cluster.start_coordinator()
    a = await cluster.start("a")
    usurper = build_membership(a.config, "other", lambda: LocalFacts(1, 1))
    async with trio.open_nursery() as nursery:
        await nursery.start(usurper.run)
        with pytest.raises(TierRefused, match="another process reports as node a"):
            await a.membership.claim(LLAMA)
        nursery.cancel_scope.cancel()


async def test_snapshots_are_located_on_the_others(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    facts = replace(NOTHING, holdings={LLAMA: (1, 2)}, bucket={LLAMA: (1,)})
    a, _ = await cluster.start("a", facts=facts), await cluster.start("b", facts=facts)
    location = await a.membership.locate(LLAMA)
    assert [(member.node, numbers) for member, numbers in location.holders] == [("b", (1, 2))]
    assert location.bucket == (1,)


async def test_without_the_coordinator_the_peers_are_asked_what_they_hold(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("membership.coordinator_unavailable", "membership.asking_peers_instead")
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await until(a.membership, lambda members: bool(members))
    await cluster.stop_coordinator()
    b.facts = replace(b.facts, holdings={LLAMA: (3,), GEMMA: (1,)})
    location = await a.membership.locate(LLAMA)
    assert [(member.node, numbers) for member, numbers in location.holders] == [("b", (3,))]


# ---- with peers only ----


async def start_peers(cluster: Cluster, *names: str) -> list[Node]:
    controls = dict(zip(names, free_ports(len(names)), strict=True))
    nodes = []
    for name in names:
        (bulk,) = free_ports(1)
        config = cluster.configure(
            name,
            listen={"control": f"127.0.0.1:{controls[name]}", "bulk": f"127.0.0.1:{bulk}"},
            peers=[f"127.0.0.1:{port}" for other, port in controls.items() if other != name],
        )
        nodes.append(await cluster.start(name, config=config))
    return nodes


async def test_peers_learn_of_each_other(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.peer_unavailable")
    a, b = await start_peers(cluster, "a", "b")
    (seen,) = await until(a.membership, lambda members: bool(members) and members[0].alive)
    assert (seen.node, seen.control) == ("b", str(b.config.listen.control))
    await b.die()
    await until(a.membership, lambda members: not members[0].alive)


async def test_peers_refuse_each_other_what_is_mounted(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.peer_unavailable")
    a, b = await start_peers(cluster, "a", "b")
    await a.membership.claim(LLAMA)
    with pytest.raises(IdentityBusy, match="mounted on node a"):
        await b.membership.claim(LLAMA)
    await a.membership.release(LLAMA)
    await b.membership.claim(LLAMA)


async def test_of_two_peers_that_claim_at_once_at_most_one_succeeds(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("membership.peer_unavailable")
    a, b = await start_peers(cluster, "a", "b")
    granted = []

    async def claim(node: Node) -> None:
        try:
            await node.membership.claim(LLAMA)
        except IdentityBusy:
            return
        granted.append(node.config.node)

    for _ in range(10):
        granted.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim, a)
            nursery.start_soon(claim, b)
        assert len(granted) <= 1
        for node in (a, b):
            if node.config.node in granted:
                await node.membership.release(LLAMA)
        assert not a.membership.mounted() | b.membership.mounted()


async def test_a_peer_that_is_gone_holds_nothing_back(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.peer_unavailable")
    a, b = await start_peers(cluster, "a", "b")
    await a.membership.claim(LLAMA)
    await a.die()
    await b.membership.claim(LLAMA)


async def test_peers_are_asked_what_they_hold(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.peer_unavailable")
    _, b, c = await start_peers(cluster, "a", "b", "c")
    b.facts = replace(b.facts, holdings={LLAMA: (1, 3)})
    location = await c.membership.locate(LLAMA)
    assert [(member.node, numbers) for member, numbers in location.holders] == [("b", (1, 3))]


async def test_a_peer_of_the_own_name_ends_this_node(cluster: Cluster) -> None:
    first = await cluster.start("a", peers=[])
    second = cluster.configure("a", peers=[str(first.config.listen.control)])
    async with raising(TierRefused, "two nodes are called 'a'"), trio.open_nursery() as nursery:
        await nursery.start(build_membership(second, "other", lambda: LocalFacts(1, 1)).run)


async def test_a_peer_of_another_cluster_is_none(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    first = await cluster.start("a", peers=[], cluster="blue")
    second = await cluster.start("b", peers=[str(first.config.listen.control)], cluster="green")
    assert second.membership.members() == ()
    (line,) = expected_logs.unannounced()
    assert line.event == "membership.peer_unavailable"
    assert "of cluster 'blue', this node of 'green'" in line.text
    expected_logs.allow("membership.peer_unavailable")


async def test_a_node_without_coordinator_and_peers_is_alone_and_mounts_what_it_wants(cluster: Cluster) -> None:
    alone = await cluster.start("a", peers=[])
    await alone.membership.claim(LLAMA)
    assert alone.membership.members() == ()
    assert (await alone.membership.locate(LLAMA)).holders == ()


async def test_what_a_node_saved_last_is_known_when_it_has_given_the_volume_back(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    a.facts = replace(a.facts, holdings={LLAMA: (1,)})
    await a.membership.release(LLAMA)
    await b.membership.claim(LLAMA)
    assert [numbers for _, numbers in (await b.membership.locate(LLAMA)).holders] == [(1,)]
