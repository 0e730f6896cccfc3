"""What a volume remembers of the steps that it went on from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.restarts import MOST_BRANCH_POINTS, BranchPoint, Resumption

steps = st.none() | st.integers(0, 9)
branch_points = st.builds(BranchPoint, st.integers(1, 9), steps)


def test_what_was_saved_beyond_a_step_and_before_it_was_gone_on_from_is_given_up() -> None:
    one = Resumption("llama", 7, 200, epoch=5)
    assert one.gives_up(300, 4)
    assert not one.gives_up(300, 5), "it was saved since"
    assert not one.gives_up(200, 4)
    assert Resumption("llama", 7, None, epoch=5).gives_up(0, 4), "it went on from no files"


def test_what_a_job_went_back_from_stays_given_up_when_it_has_come_past_it() -> None:
    back = Resumption("llama", 7, 100, epoch=5)
    later = Resumption("llama", 9, 400, epoch=6).after(back.branch_points)
    assert later.gives_up(200, 4)
    assert not later.gives_up(200, 5)
    assert not later.gives_up(100, 4)
    assert later.branch_points == (BranchPoint(5, 100), BranchPoint(6, 400))


@given(st.integers(1, 10), steps, st.lists(branch_points, max_size=6), st.integers(0, 9), st.integers(0, 10))
def test_as_much_is_given_up_as_by_all_of_them_however_little_is_remembered(
    epoch: int, step: int | None, earlier: list[BranchPoint], saved: int, saved_under: int
) -> None:
    before = [point for point in earlier if point.epoch < epoch]
    one = Resumption("llama", 7, step, epoch).after(before)

    every = [*before, BranchPoint(epoch, step)]
    assert one.gives_up(saved, saved_under) == any(point.gives_up(saved, saved_under) for point in every)
    assert one.before == tuple(sorted(one.before, key=lambda point: point.epoch))
    assert all(point.rank < following.rank for point, following in zip(one.before, one.before[1:], strict=False))
    assert one.after(before) == one


@given(st.lists(branch_points, max_size=6))
def test_what_claims_to_be_of_later_than_the_last_is_not_believed(earlier: list[BranchPoint]) -> None:
    one = Resumption("llama", 7, 400, epoch=1)
    assert one.after(earlier) == one


def test_so_many_are_remembered_and_of_more_the_latest() -> None:
    many = [BranchPoint(epoch, 10 * epoch) for epoch in range(1, 100)]
    one = Resumption("llama", 7, 10_000, epoch=100).after(many)
    assert one.before == tuple(many[-MOST_BRANCH_POINTS:])
