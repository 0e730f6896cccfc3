"""Content from several places at once: each gives a part, and one that dies costs only its own."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, NotFound, TierError, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.replicate.gather import gather
from fuse_tier.replicate.sharing import Sharing
from fuse_tier.tiers.base import Fetched, Tier, TierName
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.logs import ExpectedLogs

PARTS = [Blob(hash_bytes(b"%d" % number).digest, 64 << 20) for number in range(16)]


class Places:
    """Peers that take a second for each part, and do with it what the test says."""

    def __init__(self, *names: str) -> None:
        self.tiers = [MemoryTier(TierName.PEER, name) for name in names]
        self.has = dict.fromkeys(names, frozenset(PARTS))
        self.fails_after: dict[str, int] = {}
        self.damaged: dict[str, frozenset[Blob]] = {}
        self.seconds = dict.fromkeys(names, 1.0)
        self.asked: dict[str, list[Blob]] = {name: [] for name in names}

    async def fetch(self, place: object, blobs: Collection[Blob]) -> Fetched:
        assert isinstance(place, MemoryTier)
        name = place.place
        self.asked[name] += blobs
        await trio.sleep(self.seconds[name])
        if name in self.fails_after:
            self.fails_after[name] -= 1
            if self.fails_after[name] < 0:
                raise TierUnavailable(f"{name} is gone")
        failed: dict[Blob, TierError] = {blob: NotFound("no") for blob in blobs if blob not in self.has[name]}
        failed |= {blob: Damaged("bad") for blob in blobs if blob in self.damaged.get(name, ())}
        return Fetched(frozenset(blobs) - failed.keys(), failed)


async def test_several_places_give_about_equally_much_each_part_once(autojump_clock: MockClock) -> None:
    places = Places("a", "b", "c", "d")
    begun = trio.current_time()
    gathered = await gather("it", PARTS, [places.tiers], places.fetch)
    assert not gathered.failed
    assert sum(gathered.sources.values()) == sum(blob.size for blob in PARTS)
    assert {len(asked) for asked in places.asked.values()} == {4}
    assert trio.current_time() - begun == pytest.approx(2)


async def test_what_is_left_may_be_put_in_another_order_before_each_part(autojump_clock: MockClock) -> None:
    places = Places("a")
    looks = itertools.count()

    def reorder(left: Sequence[Blob]) -> Sequence[Blob] | None:
        return [*reversed(PARTS[2:])] if next(looks) == 2 else None

    await gather("it", PARTS, [places.tiers], places.fetch, reorder=reorder)
    asked, due = places.asked["a"], [*PARTS[:2], *reversed(PARTS[2:])]
    pairs = range(0, len(PARTS), 2)  # two parts are asked for at once
    assert [set(asked[first : first + 2]) for first in pairs] == [set(due[first : first + 2]) for first in pairs]


async def test_what_others_bring_meanwhile_is_neither_asked_for_nor_amiss(autojump_clock: MockClock) -> None:
    places = Places("a", "b")
    unwanted: set[Blob] = set()

    async def fetch(place: object, blobs: Collection[Blob]) -> Fetched:
        unwanted.add(PARTS[-1])
        return await places.fetch(place, blobs)

    ranks = [places.tiers[:1], places.tiers[1:]]
    gathered = await gather("it", PARTS, ranks, fetch, reorder=lambda left: None, unwanted=unwanted)
    assert sorted(places.asked["a"]) == sorted(PARTS[:-1])
    assert not places.asked["b"]
    assert not gathered.failed


async def test_nobody_is_asked_again_and_again_for_what_others_have_brought(autojump_clock: MockClock) -> None:
    sharers, unwanted = Sharers("a"), set[Blob]()
    source, other = sharers.tiers

    async def fetch(place: object, blobs: Collection[Blob]) -> Fetched:
        unwanted.update(PARTS[:1])
        return await sharers.fetch(place, blobs)

    async def refer(place: Tier, blobs: Sequence[Blob]) -> Mapping[Blob, Tier]:
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(blobs, other) if place is source else {}

    gathered = await gather("it", PARTS[:1], [[source]], fetch, refer, unwanted=unwanted)
    assert sharers.asked == {"source": [], "a": PARTS[:1]}
    assert not gathered.failed


@pytest.mark.parametrize(("seconds", "later"), [(1.0, 4), (0.25, 4), (0.125, 8), (0.001, 16)])
async def test_where_the_order_may_change_parts_are_small_until_a_place_has_shown_that_it_is_fast(
    autojump_clock: MockClock, seconds: float, later: int
) -> None:
    places = Places("a")
    places.seconds["a"] = seconds
    small = [Blob(hash_bytes(b"small %d" % number).digest, 4 << 20) for number in range(256)]
    places.has["a"] = frozenset(small)
    parts: list[list[Blob]] = []

    async def fetch(place: object, blobs: Collection[Blob]) -> Fetched:
        parts.append(list(blobs))
        return await places.fetch(place, blobs)

    await gather("it", small, [places.tiers], fetch, reorder=lambda left: None)
    lengths = [len(part) for part in parts]
    assert lengths[:2] == [4, 4]
    assert max(lengths) >= later
    assert lengths[2:4] == [later, later]
    assert sorted(itertools.chain(*parts)) == sorted(small)


async def test_the_faster_gives_more(autojump_clock: MockClock) -> None:
    places = Places("slow", "fast")
    places.seconds["slow"] = 4.0
    await gather("it", PARTS, [places.tiers], places.fetch)
    assert len(places.asked["fast"]) >= 3 * len(places.asked["slow"])


async def test_one_that_dies_in_the_middle_costs_only_what_it_had_taken(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed")
    places = Places("dies", "lives")
    places.fails_after["dies"] = 2
    gathered = await gather("it", PARTS, [places.tiers], places.fetch)
    assert not gathered.failed
    again = sum(len(asked) for asked in places.asked.values()) - len(PARTS)
    assert 1 <= again <= 2


async def test_what_one_lacks_or_has_damaged_the_other_gives(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.content_damaged")
    places = Places("a", "b")
    places.has["a"] = frozenset(PARTS[:8])
    places.damaged["b"] = frozenset(PARTS[:2])
    gathered = await gather("it", PARTS, [places.tiers], places.fetch)
    assert not gathered.failed


async def test_the_next_rank_is_asked_only_for_what_the_nearer_could_not_give(autojump_clock: MockClock) -> None:
    places = Places("near", "far")
    places.has["near"] = frozenset(PARTS[:12])
    near, far = places.tiers
    gathered = await gather("it", PARTS, [[], [near], [far]], places.fetch)
    assert not gathered.failed
    assert set(places.asked["far"]) == set(PARTS[12:])


async def test_what_nobody_has_is_told_with_the_reason_that_may_pass(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed")
    places = Places("a", "b")
    places.has["a"] = frozenset()
    places.fails_after["b"] = 0
    gathered = await gather("it", PARTS[:1], [places.tiers], places.fetch)
    assert isinstance(gathered.failed[PARTS[0]], TierUnavailable)
    nobody = await gather("it", PARTS[:1], [[]], places.fetch)
    assert isinstance(nobody.failed[PARTS[0]], NotFound)


class Sharers(Places):
    """One source, and others that have what they were given."""

    def __init__(self, *names: str) -> None:
        super().__init__("source", *names)
        self.has |= dict.fromkeys(names, frozenset[Blob]())
        self.sharing = Sharing()

    async def restore(self, name: str) -> None:
        async def fetch(place: object, blobs: Collection[Blob]) -> Fetched:
            fetched = await self.fetch(place, blobs)
            self.has[name] |= fetched.arrived
            return fetched

        async def refer(place: Tier, blobs: Sequence[Blob]) -> Mapping[Blob, Tier]:
            await trio.lowlevel.checkpoint()
            if place is not self.tiers[0]:
                return {}
            referred = self.sharing.refer(blobs, name, lambda node: True, trio.current_time())
            by_name = {tier.place: tier for tier in self.tiers}
            return {blob: by_name[node] for blob, node in referred.items()}

        gathered = await gather("it", PARTS, [[self.tiers[0]]], fetch, refer)
        assert not gathered.failed


async def test_many_that_want_the_same_feed_each_other_and_the_source_gives_it_once(
    autojump_clock: MockClock,
) -> None:
    sharers = Sharers("a", "b", "c", "d")
    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c", "d"):
            nursery.start_soon(sharers.restore, name)
    assert all(sharers.has[name] == frozenset(PARTS) for name in ("a", "b", "c", "d"))
    assert sorted(sharers.asked["source"]) == sorted(PARTS)


async def test_who_waits_for_one_that_gets_nothing_insists_at_the_source(autojump_clock: MockClock) -> None:
    sharers = Sharers("a", "b")
    sharers.sharing.refer(PARTS, "a", lambda node: True, 0.0)
    await sharers.restore("b")
    assert sharers.has["b"] == frozenset(PARTS)


async def test_nobody_is_waited_for_without_end_however_large_something_is_said_to_be(
    autojump_clock: MockClock,
) -> None:
    sharers, huge = Sharers("a"), Blob(PARTS[0].digest, 1 << 62)
    source, other = sharers.tiers

    async def refer(place: Tier, blobs: Sequence[Blob]) -> Mapping[Blob, Tier]:
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(blobs, other) if place is source else {}

    begun = trio.current_time()
    gathered = await gather("it", [huge], [[source]], sharers.fetch, refer)
    assert huge in gathered.failed
    assert trio.current_time() - begun < 2 * Deadline.BULK_STALL_LONGEST


async def test_nothing_that_one_who_has_failed_was_not_even_asked_for_is_taken_for_lost(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed")
    places = Places("a", "b")
    places.fails_after["a"] = 0
    places.has["b"] = frozenset()
    gathered = await gather("it", PARTS, [places.tiers], places.fetch)
    assert {*map(type, gathered.failed.values())} == {TierUnavailable}
    assert gathered.failed.keys() == {*PARTS}
