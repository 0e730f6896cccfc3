"""What a worker learns of the others, and what it may mount, where only the peers can be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import IdentityBusy, TierRefused
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import Domain, LocalFacts
from fuse_tier.replicate.membership import build_membership
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until as until_so
from tests.replicate.members import LLAMA, Cluster, Node, raising, until


async def start_peers(cluster: Cluster, *names: str, **more: Any) -> list[Node]:
    controls = dict(zip(names, free_ports(len(names)), strict=True))
    nodes = []
    for name in names:
        (bulk,) = free_ports(1)
        config = cluster.configure(
            name,
            listen={"control": f"127.0.0.1:{controls[name]}", "bulk": f"127.0.0.1:{bulk}"},
            peers=[f"127.0.0.1:{port}" for other, port in controls.items() if other != name],
            **more,
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


async def test_peers_learn_what_each_other_fails_together_with(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("membership.peer_unavailable")
    a, _ = await start_peers(cluster, "a", "b", domain={"zone": "z1", "pool": "p1"})
    (seen,) = await until(a.membership, lambda members: bool(members) and members[0].alive)
    assert seen.domain == a.membership.own().domain == Domain("z1", "p1", "127.0.0.1")


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


async def test_a_peer_that_went_a_moment_ago_is_silent_and_one_that_stays_away_is_gone(
    cluster: Cluster, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "RETURN", 3.0)
    expected_logs.allow("membership.peer_unavailable", "membership.peer_passed_over")
    _, b, c = await start_peers(cluster, "a", "b", "c")
    await until(c.membership, lambda members: sum(member.alive for member in members) == 2)
    assert (await c.membership.locate(LLAMA)).silent == ()
    await b.die()
    (silent,) = (await c.membership.locate(LLAMA)).silent
    assert silent == f"node b at {b.config.listen.control}"

    async def is_gone() -> bool:
        return not (await c.membership.locate(LLAMA)).silent

    await until_so(is_gone)


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
