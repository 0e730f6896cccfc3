from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controller.ranks.assignment import Seat, assign
from controller.ranks.shape import Shape
from fuse_tier.errors import InvalidRequest

shapes = st.builds(Shape, st.integers(1, 5), st.integers(1, 6))


@st.composite
def started(draw: st.DrawFn, *, pools_are_slices: bool = True) -> tuple[Shape, list[Seat]]:
    """A job that starts for the first time: each slice of it in a pool of its own, or all in one."""
    shape = draw(shapes)
    rng = draw(st.randoms(use_true_random=False))
    pools = [f"pool-{number}" for number in range(shape.slices)]
    rng.shuffle(pools)
    seats = [
        Seat(f"pod-{rank}", f"node-{rank}", pools[shape.slice_of(rank)] if pools_are_slices else "", indexed=rank)
        for rank in shape.ranks
    ]
    rng.shuffle(seats)
    return shape, seats


@st.composite
def restarted(draw: st.DrawFn) -> tuple[Shape, list[Seat], list[Seat]]:
    """A job before and after a restart that lost some nodes, with its pods on any of their slices' other nodes."""
    shape, before = draw(started(pools_are_slices=draw(st.booleans())))
    ranks = assign(shape, before)
    rng = draw(st.randoms(use_true_random=False))
    lost = draw(st.sets(st.sampled_from([seat.node for seat in before])))
    nodes = [
        replace(seat, node=f"{seat.node}-new", kept=None)
        if seat.node in lost
        else replace(seat, kept=ranks[seat.pod])
        for seat in before
    ]
    indices = [seat.indexed for seat in nodes]
    rng.shuffle(indices)
    after = [
        replace(seat, pod=f"{seat.pod}-again", indexed=index) for seat, index in zip(nodes, indices, strict=True)
    ]
    rng.shuffle(after)
    return shape, before, after


@given(restarted())
def test_each_rank_goes_to_one_pod(job: tuple[Shape, list[Seat], list[Seat]]) -> None:
    shape, _, after = job
    assert sorted(assign(shape, after).values()) == list(shape.ranks)


@given(restarted())
def test_whoever_comes_back_keeps_its_rank_whatever_the_indices_say(
    job: tuple[Shape, list[Seat], list[Seat]],
) -> None:
    shape, _, after = job
    ranks = assign(shape, after)
    assert {seat.pod: seat.kept for seat in after if seat.kept is not None}.items() <= ranks.items()


@given(started())
def test_a_first_start_goes_by_the_indices(job: tuple[Shape, list[Seat]]) -> None:
    shape, seats = job
    assert assign(shape, seats) == {seat.pod: seat.indexed for seat in seats}


@given(restarted(), st.data())
def test_a_slice_stands_in_one_pool_and_a_pool_has_one_slice(
    job: tuple[Shape, list[Seat], list[Seat]], data: st.DataObject
) -> None:
    shape, _, after = job
    assume("" not in {seat.pool for seat in after})
    confused = [
        replace(
            seat, kept=data.draw(st.none() | st.integers(0, 40)), indexed=data.draw(st.none() | st.integers(0, 40))
        )
        for seat in after
    ]
    ranks = assign(shape, confused)
    slices = {(seat.pool, shape.slice_of(ranks[seat.pod])) for seat in after}
    assert len(slices) == shape.slices
    assert sorted(ranks.values()) == list(shape.ranks)


@given(restarted(), st.randoms(use_true_random=False))
def test_the_order_in_which_pods_are_listed_does_not_matter(
    job: tuple[Shape, list[Seat], list[Seat]], rng: object
) -> None:
    shape, _, after = job
    assert assign(shape, after) == assign(shape, sorted(after, key=lambda seat: seat.pod))


def test_a_replacement_takes_the_rank_that_was_lost() -> None:
    seats = [
        Seat("a", "node-a", "pool", indexed=1, kept=0),
        Seat("b", "node-new", "pool", indexed=0),
        Seat("c", "node-c", "pool", indexed=2, kept=2),
    ]
    assert assign(Shape(1, 3), seats) == {"a": 0, "b": 1, "c": 2}


def test_of_two_nodes_that_claim_one_rank_the_one_whose_index_agrees_has_it() -> None:
    seats = [Seat("a", "node-a", kept=1, indexed=0), Seat("b", "node-b", kept=1, indexed=1)]
    assert assign(Shape(1, 2), seats) == {"a": 0, "b": 1}


def test_a_pool_that_was_replaced_gets_the_slice_that_was_lost() -> None:
    seats = [
        Seat("a", "a", "new-pool", indexed=0),
        Seat("b", "b", "new-pool", indexed=1),
        Seat("c", "c", "old-pool", indexed=2, kept=0),
        Seat("d", "d", "old-pool", indexed=3, kept=1),
    ]
    assert assign(Shape(2, 2), seats) == {"c": 0, "d": 1, "a": 2, "b": 3}


def test_slices_in_one_large_pool_are_assigned_without_regard_to_it() -> None:
    seats = [Seat(str(rank), f"node-{rank}", "large", indexed=rank) for rank in range(4)]
    assert assign(Shape(2, 2), seats) == {str(rank): rank for rank in range(4)}


def test_another_number_of_pods_than_of_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="1 pods cannot have the 6 ranks of 2x3"):
        assign(Shape(2, 3), [Seat("a", "a")])


@given(shapes)
def test_a_shape_is_read_as_it_is_written(shape: Shape) -> None:
    assert Shape.parse(str(shape)) == shape
    assert [rank for number in range(shape.slices) for rank in shape.slice_ranks(number)] == list(shape.ranks)


@pytest.mark.parametrize("text", ["", "3", "3x", "0x4", "-1x4", "3x4x5", "3X4", "٣x4", "3x10000000"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="3x512"):
        Shape.parse(text)
