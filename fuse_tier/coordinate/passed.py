"""Whether the ranks that are at work have come through a step that others could go on from. Pure.

Their files cannot be changed under them, so whoever goes on beside them does so from what they have come through
since they began. A step above that can be complete without them: of a life before, when a node comes back that has
part of it, when an old container saves once more, or when a backup is finished late; of replicas that hold the same
state it needs no part of theirs at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fuse_tier.checkpoints import Saved
from fuse_tier.restarts import Backup, Resumption


@dataclass(frozen=True, slots=True)
class AtWork:
    """The ranks beside the one that asks, by replica."""

    began: Mapping[str, Resumption]
    highest: Mapping[str, int]  # the step of what each has saved and not given up
    restarts: Mapping[str, int]  # the last that any replica has joined, be it at work or not


def not_come_to(
    step: int, parts: Mapping[str, Saved], backups: Collection[Backup], at_work: AtWork
) -> tuple[str, ...]:
    """Who has begun below a step, and is not known to have come to it since.

    ``parts`` are the snapshots of the step, and ``backups`` those of it in the bucket.
    """
    lacking = {
        replica: one.restart
        for replica, one in at_work.began.items()
        if (one.step is None or one.step < step) and at_work.highest.get(replica, step - 1) < step
    }
    lives = {
        restart
        for restart in set(lacking.values())
        if any(one.epoch >= restart for one in backups) or _is_of_its_life(parts, restart, at_work.restarts)
    }
    return tuple(sorted(replica for replica, restart in lacking.items() if restart not in lives))


def _is_of_its_life(parts: Mapping[str, Saved], restart: int, restarts: Mapping[str, int]) -> bool:
    """Whether all of a step was saved by who had joined a restart: what they had beyond its step was given up."""
    return bool(parts) and all(
        one.id.epoch >= restart or restarts.get(replica, restart - 1) >= restart for replica, one in parts.items()
    )
