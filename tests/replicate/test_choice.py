"""Which snapshot is restored while a node is away that has a newer one than all others."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.replicate.choice import Chooser
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench
from tests.replicate.test_succession import taken_by


@pytest.fixture
async def around(bench: Bench) -> Neighbourhood:
    """``b`` lists an older snapshot, and ``c``, which is away, a newer one."""
    around = Neighbourhood(bench, "bc", 1)
    await around.peers["b"].commit(taken_by("a", 1))
    await around.peers["c"].commit(taken_by("a", 2))
    around.change("c", alive=False)
    return around


async def chosen(around: Neighbourhood) -> int:
    manifest = (await Chooser(around.places).choose(IDENTITY, LINEAGE)).manifest
    assert manifest is not None
    return manifest.id.number


async def test_a_node_with_a_newer_copy_that_is_away_for_a_moment_is_waited_for(
    around: Neighbourhood, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def come_back() -> None:
        await trio.sleep(Deadline.RETURN / 2)
        around.come_back("c")

    nursery.start_soon(come_back)
    assert await chosen(around) == 2


async def test_a_node_that_does_not_come_back_is_not_waited_for_ever(
    around: Neighbourhood, autojump_clock: MockClock
) -> None:
    assert await chosen(around) == 1
    assert trio.current_time() < 2 * Deadline.RETURN


async def test_nobody_waits_for_what_an_owner_that_is_gone_had_alone(
    around: Neighbourhood, autojump_clock: MockClock
) -> None:
    around.change("c", mounted=frozenset({IDENTITY}))
    begun = trio.current_time()
    assert await chosen(around) == 1
    assert trio.current_time() == begun


async def test_an_owner_is_waited_for_that_has_what_was_copied_and_is_nowhere_else_now(
    around: Neighbourhood, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around.change("c", mounted=frozenset({IDENTITY}))
    around.membership.copied = 2
    begun = trio.current_time()
    assert await chosen(around) == 1
    assert trio.current_time() > begun + Deadline.RETURN
