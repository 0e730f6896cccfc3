"""Copies of a volume among peers that fail, come back, refuse, and belong elsewhere later."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_tier.deadlines import Deadline
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Manifest
from fuse_tier.replicate import targets
from fuse_tier.replicate.placement import choose_all, choose_holders
from fuse_tier.replicate.surplus import Surplus
from fuse_tier.tiers.base import TierName
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.replicate.cluster import HangingPeer, Neighbourhood, SlowPeer, UnreachablePeer
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench

ROOT = (Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, 0),)


@pytest.fixture
async def around(bench: Bench) -> Neighbourhood:
    return Neighbourhood(bench, "bcde", 2)


async def _save(bench: Bench, name: str) -> Manifest:
    (bench.tree / name).write_bytes(name.encode())
    bench.volume.changes.announce()
    taken = await bench.volume.take_snapshot()
    assert taken is not None
    return taken


async def test_copies_lost_with_a_peer_are_made_again_elsewhere(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await _save(bench, "x")
    lost = min(await around.until_held(1, 2))
    around.lose(lost)
    assert lost not in await around.until_held(1, 2)
    assert bench.volume.copies.durable(TierName.PEER, 2) == 1


async def test_a_peer_that_comes_back_with_its_ram_counts_again_and_is_sent_nothing(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await _save(bench, "x")
    away = min(await around.until_held(1, 2))
    sent = around.peers[away].sent
    around.change(away, alive=False)
    assert away not in await around.until_held(1, 2)
    around.come_back(away)

    async def counts() -> bool:
        return away in bench.volume.copies.held(TierName.PEER)

    await until(counts)
    assert sent > 0
    assert around.peers[away].sent == sent


async def test_a_peer_that_has_no_room_is_passed_over_and_that_is_no_warning(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    taken = await _save(bench, "x" * 100)
    full = (await around.targets.of(IDENTITY, around.membership.own()))[0]
    around.peers[full].blobs.capacity = 0
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    assert full not in await around.until_held(taken.id.number, 2)


async def test_a_copy_to_a_peer_that_is_gone_is_not_waited_for(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await _save(bench, "x")
    chosen = await around.targets.of(IDENTITY, around.membership.own())
    for name in chosen:
        around.peers[name] = HangingPeer()
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await trio.sleep(1)
    for name in chosen:
        around.change(name, alive=False)
    begun = trio.current_time()
    assert not await around.until_held(1, 2) & set(chosen)
    assert trio.current_time() - begun < 1


async def test_while_a_peer_takes_for_ever_another_is_asked(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await _save(bench, "x")
    slow = (await around.targets.of(IDENTITY, around.membership.own()))[0]
    around.peers[slow] = HangingPeer()
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    assert slow not in await around.until_held(1, 2)


async def test_a_slow_peer_holds_up_neither_copies_to_others_nor_the_other_peers_that_are_asked_in_its_place(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around = Neighbourhood(bench, "bcde", 1)
    around.peers["b"] = SlowPeer()
    slow, other = (_belonging_to(around, node) for node in "bc")
    volumes = [bench.another_volume(identity) for identity in (next(slow), next(slow), next(other))]
    for volume in volumes:
        Path(volume.layout.tree, "x").write_bytes(str(volume.identity).encode())
        await volume.take_snapshot()
    for volume in volumes:
        nursery.start_soon(around.fanout.keep_peers, volume)
        await wait_all_tasks_blocked()
    assert [volume.copies.held(TierName.PEER) for volume in volumes] == [{}, {}, {"c": 1}]

    async def elsewhere() -> bool:
        return all(volume.copies.is_replicated(1) for volume in volumes)

    await until(elsewhere)
    assert not any("b" in volume.copies.held(TierName.PEER) for volume in volumes)


async def test_when_each_peer_is_slow_a_volume_is_not_sent_to_all_of_them(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around = Neighbourhood(bench, "bcdefghi", 1)
    peers = {name: SlowPeer() for name in around.peers}
    around.peers.update(peers)
    await _save(bench, "x")
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await trio.sleep(1000)
    assert len(await around.holders(1)) == 3
    assert sum(peer.offered for peer in peers.values()) == 3


async def test_who_stands_in_for_a_peer_out_of_reach_gets_what_is_saved_while_that_one_is_tried_again(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("copy.failed")
    around = Neighbourhood(bench, "bcde", 1)
    (best,) = await around.targets.of(IDENTITY, around.membership.own())
    away = around.peers[best] = UnreachablePeer()
    await around.membership.claim(IDENTITY)
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    nursery.start_soon(Surplus(around.fanout, 30.0).keep_down, bench.volume)
    await _save(bench, "1")
    await wait_all_tasks_blocked()
    await _pass(mock_clock, Deadline.CONTROL_CALL)
    assert bench.volume.copies.is_replicated(1)
    for number in range(2, 100):
        await _save(bench, str(number))
        await wait_all_tasks_blocked()
        assert bench.volume.copies.is_replicated(number)
        await _pass(mock_clock, 1.7)  # so that it is tried at some of these moments, and not at others
    assert len({name for name in around.peers if await around.peers[name].snapshots(IDENTITY)}) == 1
    assert away.asked < 20, "it is left alone for longer and longer"

    away.is_reached = True
    while await around.holders(99) != {best}:
        await _pass(mock_clock, 1)


async def _pass(clock: MockClock, seconds: float) -> None:
    """Time goes by, and what that brings about is done."""
    clock.jump(seconds)
    await wait_all_tasks_blocked()


def _belonging_to(around: Neighbourhood, node: str) -> Iterator[Identity]:
    """Volumes whose first copy belongs to a node."""
    for rank in count():
        identity = Identity("default", "job", str(rank))
        if choose_holders(identity, around.membership.own(), around.members.values(), 1) == (node,):
            yield identity


async def test_copies_that_do_not_belong_where_they_are_go_but_not_at_once(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await around.membership.claim(IDENTITY)
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    nursery.start_soon(Surplus(around.fanout, 30.0).keep_down, bench.volume)
    await _save(bench, "x")
    chosen = await around.until_held(1, 2)
    away = min(chosen)
    around.change(away, alive=False)
    await around.until_held(1, 2)
    around.change(away, alive=True)
    await trio.sleep(20)
    assert len(await around.holders(1)) == 3
    await trio.sleep(60)
    assert await around.holders(1) == chosen


async def test_what_has_changed_soon_after_a_decision_moves_copies_though_nothing_changes_any_more(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*asked: Any) -> Any:
        autojump_clock.jump(1)
        return choose_all(*asked)

    monkeypatch.setattr(targets, "choose_all", slowly)
    around = Neighbourhood(bench, "bc", 1)
    (best,) = choose_holders(IDENTITY, around.membership.own(), around.members.values(), 1)
    around.change(best, alive=False)
    await _save(bench, "x")
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    assert best not in await around.until_held(1, 1)
    around.change(best, alive=True)

    async def where_it_belongs() -> bool:
        return best in await around.holders(1)

    await until(where_it_belongs)


async def test_nothing_is_surplus_while_a_copy_is_missing_where_it_belongs(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await around.membership.claim(IDENTITY)
    nursery.start_soon(Surplus(around.fanout, 30.0).keep_down, bench.volume)
    taken = await _save(bench, "x")
    for peer in around.peers.values():
        await peer.store(taken.blobs, bench.ram)
        await peer.commit(taken)
    await trio.sleep(120)
    assert len(await around.holders(1)) == 4
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await trio.sleep(120)
    assert len(await around.holders(1)) == 2


async def test_a_volume_that_another_node_has_mounted_is_that_nodes_to_keep(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around.change("e", mounted=frozenset({IDENTITY}))
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await _save(bench, "x")
    await trio.sleep(60)
    assert await around.holders(1) == set()
    around.change("e", mounted=frozenset())
    await around.until_held(1, 2)


async def test_who_has_lost_a_volume_to_another_node_that_it_still_has_mounted_stops_copying(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await around.membership.claim(IDENTITY)
    around.membership.successors[IDENTITY] = "e"
    around.change("e", mounted=frozenset({IDENTITY}))
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await _save(bench, "x")
    await trio.sleep(60)
    assert around.superseded == ["e"]
    assert await around.holders(1) == set()


async def test_a_tree_that_was_left_behind_never_takes_a_number_above_those_that_came_after_it(
    around: Neighbourhood,
    bench: Bench,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow("copy.number_taken")
    later = Manifest(SnapshotId(IDENTITY, 1), LINEAGE, "z", 0, ROOT)
    for peer in around.peers.values():
        await peer.commit(later)
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    await _save(bench, "x")
    await trio.sleep(60)
    assert around.superseded
    assert bench.volume.tenure.numbering.highest == 1


async def test_nothing_is_surplus_while_somebody_lists_something_newer(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await around.membership.claim(IDENTITY)
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    nursery.start_soon(Surplus(around.fanout, 30.0).keep_down, bench.volume)
    await _save(bench, "x")
    chosen = await around.until_held(1, 2)
    other = min({*"bcde"} - chosen)
    await around.peers[other].commit(Manifest(SnapshotId(IDENTITY, 20), LINEAGE, "z", 0, ROOT))
    await trio.sleep(120)
    assert await around.holders(20) == {other}
    assert bench.volume.tenure.numbering.highest == 1
