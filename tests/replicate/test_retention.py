"""What is given up, and what never is."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.replicate.retention import plan_retention


def plan(
    listed: Collection[int], keep: int, *, durable_elsewhere: Collection[int] = (), in_use: Collection[int] = ()
) -> tuple[int, ...]:
    """Of snapshots that are all of one run."""
    return plan_retention(dict.fromkeys(listed, "llama"), keep, durable_elsewhere=durable_elsewhere, in_use=in_use)


numbers = st.sets(st.integers(1, 30), max_size=12)
keeps = st.integers(1, 5)


def test_the_newest_stay_and_the_others_go_oldest_first() -> None:
    assert plan([1, 2, 3, 4], 2) == (1, 2)


def test_what_is_durable_elsewhere_stays_until_something_newer_is() -> None:
    assert plan([1, 2, 3, 4, 5], 2, durable_elsewhere={2}) == (1, 3)
    assert plan([2, 4, 5], 2, durable_elsewhere={2}) == ()
    assert plan([2, 4, 5], 2, durable_elsewhere={2, 4}) == (2,)


def test_what_is_being_copied_stays() -> None:
    assert plan([1, 2, 3, 4], 1, in_use={2}) == (1, 3)


def test_a_tier_does_not_fill_up_while_nothing_farther_away_answers() -> None:
    assert plan(range(1, 101), 2) == tuple(range(1, 99))


@given(numbers, keeps, numbers, numbers)
def test_whatever_is_given_up_was_listed_and_is_none_of_what_must_stay(
    listed: set[int], keep: int, durable_elsewhere: set[int], in_use: set[int]
) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere, in_use=in_use)
    assert list(given_up) == sorted(set(given_up))
    assert set(given_up) <= listed
    assert not set(given_up) & set(sorted(listed)[-keep:])
    assert not set(given_up) & in_use
    assert all(any(newer > number for newer in listed) for number in given_up)


@given(numbers, keeps, numbers)
def test_the_newest_that_is_durable_elsewhere_is_never_given_up_before_a_newer_one_is_there(
    listed: set[int], keep: int, durable_elsewhere: set[int]
) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere)
    for number in set(given_up) & durable_elsewhere:
        assert any(newer > number for newer in durable_elsewhere)


@given(numbers, keeps, numbers)
def test_nothing_more_is_given_up_after_it_was_done(listed: set[int], keep: int, durable_elsewhere: set[int]) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere)
    assert plan(listed - set(given_up), keep, durable_elsewhere=durable_elsewhere) == ()


@given(numbers, keeps, numbers)
def test_at_most_the_kept_ones_and_one_more_remain(listed: set[int], keep: int, durable_elsewhere: set[int]) -> None:
    given_up = plan(listed, keep, durable_elsewhere=durable_elsewhere)
    assert len(listed) - len(given_up) <= keep + 1


def test_the_last_state_of_an_earlier_run_stays() -> None:
    assert plan_retention({1: "old", 2: "old", 3: "new", 4: "new", 5: "new"}, 2) == (1, 3)


def test_only_the_newest_run_keeps_several() -> None:
    runs = {1: "a", 2: "a", 3: "b", 4: "b", 5: "a"}
    assert plan_retention(runs, 3) == (3,)


@given(st.dictionaries(st.integers(1, 30), st.sampled_from(["a", "b", "c"]), max_size=12), keeps)
def test_no_run_is_given_up_whole(listed: dict[int, str], keep: int) -> None:
    given_up = plan_retention(listed, keep)
    assert {run for number, run in listed.items() if number not in given_up} == set(listed.values())
