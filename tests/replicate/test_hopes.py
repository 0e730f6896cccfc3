"""Whether content that nobody gives may still come."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.hopes import Hopes
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.snapshots import keep
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import IDENTITY, Bench

NO_LONGER_AWAY = Deadline.RETURN + 1


@pytest.fixture
async def around(bench: Bench) -> Neighbourhood:
    neighbourhood = Neighbourhood(bench, "cd", 1)
    for name, peer in neighbourhood.peers.items():
        peer.place = f"peer {name}"
    return neighbourhood


async def chosen_from(around: Neighbourhood, name: str) -> Chosen:
    saved = await keep(around.peers[name], {"weights": b"0123"}, identity=IDENTITY)
    return Chosen(saved, (around.bench.ram, around.places.peer(around.members[name])))


async def may_come(hopes: Hopes, chosen: Chosen) -> bool:
    """After another look."""
    await hopes.look(chosen)
    return hopes.may_come


async def test_who_is_there_and_does_not_have_it_gives_no_hope(around: Neighbourhood) -> None:
    hopes = Hopes(around.places, IDENTITY)
    await hopes.look(await chosen_from(around, "c"))
    assert not hopes.may_come
    assert hopes.gone == frozenset()


async def test_a_holder_that_is_away_is_hoped_for_as_long_as_a_node_needs_to_start_again(
    around: Neighbourhood, mock_clock: MockClock
) -> None:
    chosen, hopes = await chosen_from(around, "c"), Hopes(around.places, IDENTITY)
    around.lose("c")
    assert await may_come(hopes, chosen)
    assert hopes.gone == frozenset()
    mock_clock.jump(NO_LONGER_AWAY)
    assert not await may_come(hopes, chosen)
    assert hopes.gone == {"peer c"}


async def test_a_holder_that_was_back_meanwhile_is_hoped_for_anew(
    around: Neighbourhood, mock_clock: MockClock
) -> None:
    chosen, hopes = await chosen_from(around, "c"), Hopes(around.places, IDENTITY)
    around.change("c", alive=False)
    await hopes.look(chosen)
    mock_clock.jump(NO_LONGER_AWAY)
    around.come_back("c")
    await hopes.look(chosen)
    assert hopes.gone == frozenset()
    around.change("c", alive=False)
    await hopes.look(chosen)
    assert hopes.may_come
    assert hopes.gone == frozenset()


async def test_who_is_forgotten_altogether_is_gone_as_well(around: Neighbourhood, mock_clock: MockClock) -> None:
    chosen, hopes = await chosen_from(around, "c"), Hopes(around.places, IDENTITY)
    around.membership.update([around.members["d"]])
    await hopes.look(chosen)
    mock_clock.jump(NO_LONGER_AWAY)
    await hopes.look(chosen)
    assert hopes.gone == {"peer c"}


async def test_a_worker_that_was_started_again_learns_anew_for_whom_to_hope(
    around: Neighbourhood, mock_clock: MockClock
) -> None:
    await chosen_from(around, "c")
    around.change("c", alive=False)
    hopes = Hopes(around.places, IDENTITY)
    assert await may_come(hopes, Chosen(None))
    mock_clock.jump(NO_LONGER_AWAY)
    assert not await may_come(hopes, Chosen(None))


async def test_who_cannot_be_asked_what_it_has_may_have_it(around: Neighbourhood) -> None:
    hopes = Hopes(around.places, IDENTITY)
    around.membership.silent = ("node c",)
    await hopes.look(Chosen(None))
    assert hopes.may_come


@pytest.mark.parametrize("has_bucket", [False, True])
async def test_a_node_that_sees_nobody_else_may_be_cut_off_itself(
    has_bucket: bool, around: Neighbourhood, mock_clock: MockClock
) -> None:
    around.places.bucket = MemoryTier(TierName.BUCKET) if has_bucket else None
    chosen, hopes = await chosen_from(around, "c"), Hopes(around.places, IDENTITY)
    around.lose("c")
    around.lose("d")
    await hopes.look(chosen)
    mock_clock.jump(NO_LONGER_AWAY)
    await hopes.look(chosen)
    assert hopes.may_come is not has_bucket
