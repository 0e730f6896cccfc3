"""Which parts of a job's checkpoints nodes are to keep for the sake of its other ranks. Pure.

The invariant: where there is a step of which each part is on two nodes, what is kept holds a complete checkpoint
though one node is lost. Ranks that save faster than they are copied may have copies of different steps, and then
there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fuse_tier.checkpoints import Saved
from fuse_tier.completeness import producible_steps, whole_steps
from fuse_tier.coordinate.choosing import Parts
from fuse_tier.identity import Identity, SnapshotId

Numbers = Mapping[Identity, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Listed:
    """What is listed of one shape of a job, ``size`` ranks."""

    size: int
    here: Parts  # by nodes that are alive
    ever: Parts  # by all that were known: they may come back


def needed_parts(
    shapes: Iterable[Listed], copied: Collection[SnapshotId], before: Numbers, *, is_awaited: bool
) -> dict[Identity, tuple[int, ...]]:
    """The numbers of the snapshots that stay, by volume.

    Of each shape the newest complete step, of what live nodes list and of what all did; also the newest that only
    partners have, for a restart goes on from that, and it may be lost with any of them. While parts of that are on
    one node only, the newest of which each is on two stays as well (``copied``): else the loss of one node would
    leave none. What was needed ``before`` stays until something newer is complete on live nodes. Where nothing is,
    all stays as long as somebody is waited for who has just gone (``is_awaited``).
    """
    needed: dict[Identity, set[int]] = {}
    complete: dict[Identity, int] = {}
    for shape in shapes:
        producible = list(producible_steps(shape.here, shape.size).values())
        here = [parts for parts in producible if len(parts) == shape.size]
        ever = list(whole_steps(shape.ever, shape.size).values())
        safe = [whole for whole in here if all(part.id in copied for part in whole.values())]
        for whole in (*here[-1:], *ever[-1:], *safe[-1:], *producible[-1:]):
            _add(needed, whole.values())
        for part in here[-1].values() if here else ():
            complete[part.id.identity] = max(part.id.number, complete.get(part.id.identity, 0))
        if not here and is_awaited:
            for several in shape.here.values():
                _add(needed, several)
    for identity, numbers in before.items():
        if newer := {number for number in numbers if number > complete.get(identity, 0)}:
            needed.setdefault(identity, set()).update(newer)
    return {identity: tuple(sorted(numbers)) for identity, numbers in needed.items()}


def on_several(listed: Iterable[Iterable[Saved]]) -> set[SnapshotId]:
    """Snapshots that more than one of some nodes list; each node's are given as one."""
    once: set[SnapshotId] = set()
    more: set[SnapshotId] = set()
    for of_node in listed:
        for one in of_node:
            (more if one.id in once else once).add(one.id)
    return more


def _add(needed: dict[Identity, set[int]], parts: Iterable[Saved]) -> None:
    for part in parts:
        needed.setdefault(part.id.identity, set()).add(part.id.number)
