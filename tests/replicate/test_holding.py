from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.deadlines import Deadline
from fuse_tier.replicate.holding import Holding


def test_a_tree_is_held_for_twice_as_long_as_it_took_to_read_within_bounds() -> None:
    holding = Holding()
    assert holding.next(0, 0.001) == Deadline.HOLD
    assert holding.next(0, 4) == 8
    assert holding.next(0, 1000) == Deadline.HOLD_LONGER


def test_a_hold_that_was_of_use_says_how_long_the_next_one_is() -> None:
    holding = Holding()
    holding.was_of_use(5)
    assert holding.next(0, 0) == 10
    holding.was_of_use(0.1)
    assert holding.next(0, 0) == Deadline.HOLD


def test_who_waits_has_a_tree_held_at_once_as_long_as_that_may_help() -> None:
    holding = Holding()
    for seconds in (2, 4, 8, 16, Deadline.HOLD_LONGER):
        assert holding.next(1, 0, is_awaited=True) == seconds
        holding.was_in_vain(1, seconds)
        assert holding.next(1, 0) == 0
    assert holding.next(1, 0, is_awaited=True) == 0
    assert holding.next(1 + 9 * Deadline.HOLD_LONGER, 0, is_awaited=True) == Deadline.HOLD_LONGER


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.sampled_from([0.1, 1.0])), min_size=1, max_size=50)
)
def test_holds_that_are_in_vain_take_at_most_a_tenth_of_the_time(tries: list[tuple[float, float, float]]) -> None:
    holding, now, held = Holding(), 0.0, 0.0
    for pause, reading, part in tries:
        now += pause
        assert bool(holding.next(now, reading)) == (not holding.not_for(now))
        seconds = holding.next(now, reading) * part
        if seconds:
            now += seconds
            held += seconds
            holding.was_in_vain(now, seconds)
    assert held <= 1.001 * now / 10 + Deadline.HOLD_LONGER
