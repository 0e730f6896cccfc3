"""What of a volume's snapshots the other ranks of its job have a part in: what is set aside, and what stays. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fuse_tier.checkpoints import Saved
from fuse_tier.replicate.retention import last_of_saves
from fuse_tier.restarts import Resumption

_NEXT = 2  # saves


def set_aside(listed: Iterable[Saved], resumption: Resumption | None = None) -> dict[int, int]:
    """Of one volume's snapshots those that count for nothing any more, with the step that the job went back to.

    A snapshot of a lower step that was taken later in the same run says so, and so does what the volume's tree went
    on from, now or before (-1: from no files).
    """
    aside: dict[int, int] = {}
    lowest: dict[str, int] = {}
    for one in sorted(listed, key=lambda one: -one.id.number):
        if one.step is None:
            continue
        run = one.lineage.run
        back = lowest.get(run, one.step)
        if resumption is not None and resumption.run == run:
            back = min([back, *(point.rank for point in resumption.branch_points if one.id.epoch < point.epoch)])
        if back < one.step:
            aside[one.id.number] = back
        lowest[run] = min(one.step, lowest.get(run, one.step))
    return aside


def kept_aside(
    listed: Collection[Saved], complete: Collection[int], resumption: Resumption | None = None
) -> frozenset[int]:
    """What of that stays, because no checkpoint has been completed since beyond what the job went back to.

    ``complete`` are the volume's parts of the newest complete checkpoints. Of jobs of one rank nothing is kept.
    """
    of_job = [one for one in listed if one.lineage.world_size > 1]
    steps = {one.id.number: one.step for one in of_job}
    all_aside = set_aside(of_job, resumption)
    # Who has just gone back may have heard last of what was complete before that: it completes nothing any more.
    newer = [(one, step) for one in complete if one not in all_aside and (step := steps.get(one)) is not None]
    return frozenset(
        aside
        for aside, back in all_aside.items()
        if not any(number > aside and step > back for number, step in newer)
    )


def stays_for_job(
    listed: Collection[Saved], complete: Collection[int], resumption: Resumption | None = None
) -> frozenset[int]:
    """What of one volume's snapshots stays for the sake of the other ranks of its job, and those set aside.

    ``complete`` are the volume's parts of the newest complete checkpoints, as last heard. The saves after it may be
    complete by now, or are the next to be, however far this rank is ahead of the others.
    """
    of_job = [one for one in listed if one.lineage.world_size > 1]
    aside = set_aside(of_job, resumption)
    going_on = [one for one in of_job if one.id.number > max(complete, default=0) and one.id.number not in aside]
    following = [one.id.number for one in reversed(last_of_saves(going_on))]
    return frozenset([*complete, *following[:_NEXT]]) | kept_aside(of_job, complete, resumption)
