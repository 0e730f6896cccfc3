"""Who gets which rank: a pure function of a job's pods, the pools of their nodes, and what the nodes had before.

Who comes back with a rank keeps it, since the files of that rank are in its RAM. A slice is a set of machines with a
network of their own, and stands in one node pool: so ranks of one slice go to one pool, and no pool has two slices.
Where pools are not slices (nodes without pools, several slices in a large one) they are left out of account.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from controller.ranks.shape import Shape


@dataclass(frozen=True, slots=True)
class Seat:
    """A pod that is to get a rank.

    ``indexed`` is the rank that the indices of its job give; ``kept`` the one that its node has from before, in the
    same job and shape; None: there is none. ``pool`` is empty where a node tells of none.
    """

    pod: str  # its uid
    node: str
    pool: str = ""
    indexed: int | None = None
    kept: int | None = None


def assign(shape: Shape, seats: Collection[Seat]) -> dict[str, int]:
    """A rank for each pod; there are as many of them as ranks. Raises ValueError if not."""
    if len(seats) != len(shape.ranks):
        raise ValueError(f"{len(seats)} pods cannot have the {len(shape.ranks)} ranks of {shape}")
    in_order = sorted(seats, key=lambda seat: (seat.node, seat.pod))
    pools = _pools(in_order)
    if not _are_slices(shape, pools):
        return _fill(shape.ranks, in_order)
    ranks: dict[str, int] = {}
    for pool, number in _slices_of_pools(shape, pools).items():
        ranks |= _fill(shape.slice_ranks(number), pools[pool])
    return ranks


def _pools(seats: Iterable[Seat]) -> dict[str, list[Seat]]:
    pools: defaultdict[str, list[Seat]] = defaultdict(list)
    for seat in seats:
        pools[seat.pool].append(seat)
    return dict(sorted(pools.items()))


def _are_slices(shape: Shape, pools: Mapping[str, list[Seat]]) -> bool:
    return "" not in pools and all(len(seats) == shape.workers for seats in pools.values())


def _slices_of_pools(shape: Shape, pools: Mapping[str, list[Seat]]) -> dict[str, int]:
    """A slice for each pool: first where most ranks can be kept, then where most indices are right."""
    wishes = []
    for pool, seats in pools.items():
        kept = [shape.slice_of(rank) for seat in seats if (rank := seat.kept) is not None and rank in shape.ranks]
        indexed = [
            shape.slice_of(rank) for seat in seats if (rank := seat.indexed) is not None and rank in shape.ranks
        ]
        for number in {*kept, *indexed}:
            wishes.append((-kept.count(number), -indexed.count(number), number, pool))
    slices: dict[str, int] = {}
    taken: set[int] = set()
    for _, _, number, pool in sorted(wishes):
        if pool not in slices and number not in taken:
            slices[pool] = number
            taken.add(number)
    free = (number for number in range(shape.slices) if number not in taken)
    return slices | {pool: next(free) for pool in pools if pool not in slices}


def _fill(ranks: range, seats: Collection[Seat]) -> dict[str, int]:
    """Gives each of these seats one of as many ranks: the one that it has, else the one of its indices, else any."""
    given: dict[str, int] = {}
    taken: set[int] = set()

    def give(seat: Seat, rank: int | None) -> None:
        if rank is not None and rank in ranks and rank not in taken and seat.pod not in given:
            given[seat.pod] = rank
            taken.add(rank)

    for seat in seats:  # of two that claim one rank, the one whose indices agree has it
        if seat.kept == seat.indexed:
            give(seat, seat.kept)
    for seat in seats:
        give(seat, seat.kept)
    for seat in seats:
        give(seat, seat.indexed)
    free = (rank for rank in ranks if rank not in taken)
    return given | {seat.pod: next(free) for seat in seats if seat.pod not in given}
