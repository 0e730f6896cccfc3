"""Restore plans: who gives what to whom, for any job, any holders, any losses."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Domain
from fuse_tier.replicate.plan import PIECE_BYTES, Wanted, nearest, plan
from fuse_tier.tiers.base import TierName

MIB = 1 << 20
NODES = [f"node-{number}" for number in range(8)]
ZONES = {node: Domain(zone=f"zone-{number % 2}") for number, node in enumerate(NODES)}


def snapshot(rank: int) -> SnapshotId:
    return SnapshotId(Identity("default", "llama", str(rank)), rank + 1)


def want(
    rank: int, at: str, *holders: str, size: int = 100 * MIB, is_in_bucket: bool = True, zones: bool = False
) -> Wanted:
    domains = ZONES if zones else {}
    known = {node: domains.get(node, Domain()) for node in holders}
    one = snapshot(rank)
    return Wanted(one, size, at, domains.get(at, Domain()), known, is_in_bucket, one.identity)


_sizes = st.integers(0, 1000).map(lambda mib: mib * MIB)
_wants = st.lists(
    st.builds(
        lambda rank, at, holders, backed, zones: want(
            rank, at, *sorted(holders), size=rank * 70 * MIB, is_in_bucket=backed, zones=zones
        ),
        st.integers(0, 5),
        st.sampled_from([*NODES, "new"]),
        st.sets(st.sampled_from(NODES), max_size=3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=24,
    unique_by=lambda one: (one.snapshot, one.at),
)


@given(_wants)
def test_everything_comes_whole_from_the_nearest_that_have_it_and_what_nobody_has_is_told(
    wanted: list[Wanted],
) -> None:
    legs = plan(wanted).legs
    assert [leg.wanted for leg in legs] == sorted(wanted, key=lambda one: (one.snapshot, one.at))
    asked_for = {(one.snapshot, one.at) for one in wanted}
    for leg in legs:
        one, tiers = leg.wanted, {source.tier for source in leg.sources}
        if not leg.sources:
            assert not one.holders
            assert not one.is_in_bucket
            continue
        assert sum(source.size for source in leg.sources) == one.size
        assert (tiers == {TierName.RAM}) == (one.at in one.holders)
        for source in leg.sources:
            if source.tier is TierName.PEER and not source.depth:
                has_it = source.node in one.holders or (one.snapshot, source.node) in asked_for
                assert has_it
                assert source.node != one.at
        if TierName.BUCKET in tiers:
            assert not one.holders


@given(_wants)
def test_the_bucket_is_read_once_however_many_nodes_want_the_same(wanted: list[Wanted]) -> None:
    readers = Counter(
        leg.wanted.snapshot for leg in plan(wanted).legs for one in leg.sources if one.tier is TierName.BUCKET
    )
    assert all(count == 1 for count in readers.values())


@given(st.integers(1, 200), st.integers(0, 2))
def test_what_many_want_goes_down_a_tree_of_which_each_node_feeds_two(many: int, holders: int) -> None:
    found = plan([want(0, f"asker-{number:03}", *NODES[:holders]) for number in range(many)])
    fed = Counter(one.node for leg in found.legs for one in leg.sources if one.tier is TierName.PEER and one.depth)
    assert max(fed.values(), default=0) <= 2
    assert found.depth <= math.log2(many + 1)
    assert not found.impossible
    # It takes as long as it takes each node to pass it on twice, not as long as to give it to all.
    assert found.seconds(100 * MIB, 100 * MIB) <= 2.0


@given(st.integers(1, 30), st.integers(1, 6), _sizes.filter(bool))
def test_those_who_have_the_same_give_equally_much(ranks: int, holders: int, size: int) -> None:
    given_by = plan([want(rank, f"new-{rank}", *NODES[:holders], size=size) for rank in range(ranks)]).given
    loads = [given_by.get(node, 0) for node in NODES[:holders]]
    assert max(loads) - min(loads) <= PIECE_BYTES
    assert sum(loads) == ranks * size


@given(st.integers(1, 30), st.integers(2, 8))
def test_nobody_gives_two_ranks_what_two_nodes_could(ranks: int, nodes: int) -> None:
    ring = [(NODES[rank % nodes], NODES[(rank + 1) % nodes]) for rank in range(ranks)]
    found = plan([want(rank, f"new-{rank}", *pair, size=PIECE_BYTES) for rank, pair in enumerate(ring)])
    # Each has two to take it from: with as many ranks as nodes none need give two.
    assert max(found.given.values()) <= PIECE_BYTES * (2 * ranks / nodes + 1)


def test_a_node_of_the_own_zone_is_asked_before_others_and_zones_that_nobody_names_are_equal() -> None:
    assert nearest(ZONES["node-0"], {one: ZONES[one] for one in NODES[1:5]}) == (
        ("node-2", "node-4"),
        ("node-1", "node-3"),
    )
    assert nearest(Domain(), {one: ZONES[one] for one in NODES[:2]}) == (("node-0", "node-1"),)
    assert nearest(ZONES["node-0"], {"node-1": ZONES["node-1"]}) == (("node-1",),)
    assert nearest(ZONES["node-0"], {}) == ()


def test_survivors_keep_what_they_have_and_only_the_lost_rank_is_brought() -> None:
    ranks = [
        want(0, "node-0", "node-0", "node-1"),
        want(1, "node-1", "node-1", "node-2"),
        want(2, "node-3", "node-0"),
    ]
    found = plan(ranks)
    assert [[(one.tier.value, one.node) for one in leg.sources] for leg in found.legs] == [
        [("ram", "node-0")],
        [("ram", "node-1")],
        [("peer", "node-0")],
    ]
    assert found.given == {"node-0": 100 * MIB}
