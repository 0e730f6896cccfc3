"""Whether an owner has what it has mounted; if not, another node gets it in its place."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.orphans import Orphans
from tests.harness.snapshots import keep
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import Bench

VOLUME = Identity("default", "job", "0")
FILES = {"weights": b"0123"}
LATE = 2 * Deadline.COPY


@dataclass(frozen=True, slots=True)
class Restoring:
    """Node ``a``, which is this one, has the one copy of a volume that node ``c`` has mounted; ``b`` has room."""

    around: Neighbourhood
    orphans: Orphans
    held: Manifest

    async def look(self) -> None:
        """One round, and all that comes of it."""
        async with trio.open_nursery() as nursery:
            await self.orphans.look(nursery)

    async def look_after(self, seconds: float, clock: MockClock) -> None:
        """Time goes by, and then it looks."""
        clock.jump(seconds)
        await self.look()

    async def who_has_it(self) -> set[str]:
        return {name for name, peer in self.around.peers.items() if self.held.id in peer.texts}


async def _begin(bench: Bench, replicas: int) -> Restoring:
    around = Neighbourhood(bench, "bcx", replicas)
    around.change("x", alive=False)
    around.change("c", mounted=frozenset({VOLUME}))
    held = await keep(bench.ram, FILES, identity=VOLUME)
    orphans = Orphans(around.places, around.copier, around.targets, lambda identity: None, replicas)
    restoring = Restoring(around, orphans, held)
    await restoring.look()
    return restoring


@pytest.fixture
async def restoring(bench: Bench) -> Restoring:
    return await _begin(bench, replicas=1)


async def test_an_owner_that_does_not_get_what_it_has_mounted_can_have_it_from_one_more_node(
    restoring: Restoring, mock_clock: MockClock
) -> None:
    await restoring.look_after(Deadline.COPY / 2, mock_clock)
    assert await restoring.who_has_it() == set()
    await restoring.look_after(LATE, mock_clock)
    assert await restoring.who_has_it() == {"b"}


async def test_an_owner_that_has_it_by_then_is_not_looked_at_again(
    restoring: Restoring, mock_clock: MockClock
) -> None:
    await keep(restoring.around.peers["c"], FILES, identity=VOLUME)
    await restoring.look_after(LATE, mock_clock)
    looked = restoring.around.membership.located
    await restoring.look_after(LATE, mock_clock)
    assert await restoring.who_has_it() == {"c"}
    assert restoring.around.membership.located == looked


async def test_an_owner_that_is_started_again_has_its_time_anew(restoring: Restoring, mock_clock: MockClock) -> None:
    await restoring.look_after(Deadline.COPY / 2, mock_clock)
    restoring.around.change("c", instance="c2")
    await restoring.look()
    await restoring.look_after(Deadline.COPY * 0.75, mock_clock)
    assert await restoring.who_has_it() == set()
    await restoring.look_after(LATE, mock_clock)
    assert await restoring.who_has_it() == {"b"}


async def test_an_owner_that_tries_again_and_again_to_mount_it_has_had_its_time_as_well(
    restoring: Restoring, mock_clock: MockClock
) -> None:
    for mounted in (frozenset[Identity](), frozenset({VOLUME}), frozenset[Identity](), frozenset({VOLUME})):
        restoring.around.change("c", mounted=mounted)
        await restoring.look_after(Deadline.COPY / 3, mock_clock)
    assert await restoring.who_has_it() == {"b"}


async def test_an_owner_that_had_it_once_is_looked_at_again_when_it_has_mounted_it_again(
    restoring: Restoring, mock_clock: MockClock
) -> None:
    saved = await keep(restoring.around.peers["c"], FILES, identity=VOLUME)
    await restoring.look_after(LATE, mock_clock)
    del restoring.around.peers["c"].texts[saved.id]
    for mounted in (frozenset[Identity](), frozenset({VOLUME})):
        restoring.around.change("c", mounted=mounted)
        await restoring.look()
    assert await restoring.who_has_it() == {"b"}


async def test_what_the_bucket_has_an_owner_can_have_from_there(restoring: Restoring, mock_clock: MockClock) -> None:
    restoring.around.membership.bucket = (restoring.held.id.number,)
    await restoring.look_after(LATE, mock_clock)
    assert await restoring.who_has_it() == set()


async def test_where_no_copies_are_configured_none_is_made(bench: Bench, mock_clock: MockClock) -> None:
    restoring = await _begin(bench, replicas=0)
    await restoring.look_after(LATE, mock_clock)
    assert await restoring.who_has_it() == set()
