"""Of several coordinators only the newest speaks."""

from __future__ import annotations

import pytest
import trio

from fuse_tier.coordinate.fencing import Fence, Superseded
from fuse_tier.epochs import FARTHEST_AHEAD


def test_one_that_hears_of_a_newer_one_is_silent_from_then_on() -> None:
    fence = Fence(5)
    fence.hear(5, is_settled=True)
    fence.check()
    fence.hear(6, is_settled=True)
    with pytest.raises(Superseded, match="of term 5, was replaced by one of term 6"):
        fence.check()
    fence.hear(4, is_settled=True)
    with pytest.raises(Superseded):
        fence.check()


def test_one_that_has_just_begun_rises_above_what_it_hears() -> None:
    fence = Fence(5)
    fence.hear(9, is_settled=False)
    assert fence.term == 10
    fence.check()


def test_one_that_has_lost_its_lease_neither_speaks_nor_rises() -> None:
    fence = Fence(5, is_leading=lambda: False)
    with pytest.raises(Superseded, match="leads no more"):
        fence.check()
    fence.hear(9, is_settled=False)
    assert fence.term == 5


def test_a_term_out_of_all_reason_changes_nothing() -> None:
    fence = Fence(5)
    fence.hear(6 + FARTHEST_AHEAD, is_settled=True)
    fence.check()


def test_nor_do_several_take_one_farther_ahead_than_nodes_believe() -> None:
    fence = Fence(5)
    fence.hear(5 + FARTHEST_AHEAD // 2, is_settled=False)
    fence.hear(5 + FARTHEST_AHEAD, is_settled=False)
    fence.hear(5 + FARTHEST_AHEAD + 1, is_settled=False)
    assert fence.term == 6 + FARTHEST_AHEAD // 2
    fence.check()


async def test_its_process_is_told() -> None:
    fence = Fence(5)
    with pytest.raises(ExceptionGroup) as failed:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fence.watch)
            fence.hear(6, is_settled=True)
    assert failed.group_contains(Superseded)
