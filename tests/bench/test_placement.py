"""A thousand nodes and their coordinator, in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.bench.placement import lose_a_slice


@pytest.mark.parametrize("copies", [1, 2])
async def test_a_lost_slice_is_noticed_within_a_lease_and_its_copies_spread_evenly_over_other_slices(
    autojump_clock: MockClock, copies: int
) -> None:
    begun = trio.current_time()
    decision = await lose_a_slice(copies=copies)
    assert decision.noticed_seconds <= 5.1
    assert decision.busiest <= 2 * decision.mean
    assert decision.together == 0
    assert decision.lost <= decision.moved <= 1.5 * decision.lost
    assert trio.current_time() > begun
