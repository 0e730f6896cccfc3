"""What a worker learns of the others, and what it may mount: with a real coordinator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from fuse_tier.epochs import number_before
from fuse_tier.errors import IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.manifest import Lineage
from fuse_tier.members import LocalFacts
from fuse_tier.replicate.membership import build_membership
from fuse_tier.restarts import Question
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until as soon
from tests.replicate.members import GEMMA, LLAMA, NOTHING, Cluster, raising, until

LONGER_LEASE = 6.0  # than nodes take to connect again, which begins after up to two seconds, on a busy machine too


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


async def test_who_cannot_be_asked_without_the_coordinator_is_named(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"membership\..*", "coordinator.node_gone")
    await cluster.start_coordinator()
    a, b, c = [await cluster.start(name) for name in "abc"]
    await until(a.membership, lambda members: sum(member.alive for member in members) == 2)
    await b.die()
    await until(a.membership, lambda members: sum(member.alive for member in members) == 1)
    assert (await a.membership.locate(LLAMA)).silent == ()
    await cluster.stop_coordinator()
    await c.die()
    silent = (await a.membership.locate(LLAMA)).silent
    assert [name.partition(" (")[0] for name in silent] == [
        "node c",
        "node b",
        f"the coordinator at {cluster.coordinator}",
    ]
    late = await cluster.start("d")
    assert [name.partition(" (")[0] for name in (await late.membership.locate(LLAMA)).silent] == [
        f"the coordinator at {cluster.coordinator}"
    ]


async def test_who_was_known_and_has_not_told_a_new_coordinator_what_it_holds_is_named_until_it_has(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"membership\..*", "coordinator.node_gone")
    await cluster.start_coordinator(lease=LONGER_LEASE)
    a, b, c = [await cluster.start(name) for name in "abc"]
    b.facts = replace(b.facts, holdings={LLAMA: (3,)})
    await until(a.membership, lambda members: sum(member.alive for member in members) == 2)
    await c.die()
    await cluster.stop_coordinator()
    await cluster.start_coordinator(lease=LONGER_LEASE)
    await a.membership.claim(LLAMA)  # which waits until the coordinator has heard of all that it should have

    async def is_b_heard() -> bool:
        return bool((await a.membership.locate(LLAMA)).holders)

    await soon(is_b_heard)
    location = await a.membership.locate(LLAMA)
    assert [(member.node, numbers) for member, numbers in location.holders] == [("b", (3,))]
    assert [name.partition(" (")[0] for name in location.silent] == ["node c"]
    with pytest.raises(TierUnavailable, match="node c has not told it yet what it holds"):
        await a.membership.restart(Question(LLAMA, Lineage("llama", world_size=1)))
    await cluster.start("c")
    await until(a.membership, lambda members: {member.node for member in members} == {"b", "c"})
    assert (await a.membership.locate(LLAMA)).silent == ()
    assert (await a.membership.restart(Question(LLAMA, Lineage("llama", world_size=1)))).step is None


async def test_what_a_node_saved_last_is_known_when_it_has_given_the_volume_back(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    await a.membership.claim(LLAMA)
    a.facts = replace(a.facts, holdings={LLAMA: (1,)})
    await a.membership.release(LLAMA)
    await b.membership.claim(LLAMA)
    assert [numbers for _, numbers in (await b.membership.locate(LLAMA)).holders] == [(1,)]


async def test_each_owner_has_a_later_epoch_than_the_one_before(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    a, b = await cluster.start("a"), await cluster.start("b")
    first = await a.membership.claim(LLAMA)
    assert await a.membership.claim(LLAMA) == first == a.membership.epoch(LLAMA)
    await a.membership.release(LLAMA)
    assert await b.membership.claim(LLAMA, above=first + 1000) > first + 1000


async def test_after_a_restart_of_the_coordinator_what_is_mounted_is_in_doubt_until_it_has_another_epoch(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("membership.coordinator_unavailable")
    await cluster.start_coordinator()
    a = await cluster.start("a")
    first = await a.membership.claim(LLAMA)
    await cluster.stop_coordinator()
    await cluster.start_coordinator()
    seen, version = [a.membership.is_doubtful(LLAMA)], -1
    with trio.fail_after(20):
        while a.membership.epoch(LLAMA) == first:
            version = await a.membership.wait_changed(version)
            seen.append(a.membership.is_doubtful(LLAMA))
    assert seen[-1] is False
    assert True in seen
    assert a.membership.epoch(LLAMA) > first
    assert await a.membership.confirm(LLAMA)


async def test_who_was_counted_out_and_succeeded_is_told_so(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("coordinator.node_gone")
    await cluster.start_coordinator()
    a = await cluster.start("a")
    epoch = await a.membership.claim(LLAMA)
    await a.die()
    b = await cluster.start("b")
    b.facts = replace(NOTHING, holdings={LLAMA: (number_before(await b.membership.claim(LLAMA)) + 1,)})
    await b.membership.release(LLAMA)
    again = await cluster.start("a", facts=replace(NOTHING, mounted=frozenset({LLAMA}), epochs={LLAMA: epoch}))
    version = -1
    with trio.fail_after(20):
        while not again.membership.is_doubtful(LLAMA):
            version = await again.membership.wait_changed(version)
    assert not await again.membership.confirm(LLAMA)
