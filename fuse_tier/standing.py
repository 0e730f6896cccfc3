"""How a job's complete checkpoints stand: which there are, and on which tiers each of them is whole.

Values only, for people, metrics and Kubernetes; what a job goes on from is decided elsewhere (``restarts.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fuse_tier.checkpoints import Job

RAM: Final = "ram"
PEER: Final = "peer"
BUCKET: Final = "bucket"
TIERS: Final = (RAM, PEER, BUCKET)


@dataclass(frozen=True, slots=True)
class Standing:
    """One complete checkpoint of a job.

    On ``ram`` it is when the part of each rank is in the RAM of some node that is alive; on ``peer`` when each is on
    one that does not have the rank mounted, so that the loss of any one node costs nothing of it.
    """

    job: Job
    run: str
    ranks: int
    step: int | None  # None: of a job with one replica, whose tree names none
    created_ns: int  # when the newest of its parts was saved; since 1970
    size: int  # bytes of all parts together, before anything is shared
    tiers: tuple[str, ...]  # in the order of ``TIERS``; none: parts are on nodes that are away
    is_bad: bool = False  # marked so, or found to be damaged

    @property
    def key(self) -> tuple[Job, str, int, int | None, int]:
        """Two of which all this is the same tell of one checkpoint."""
        return self.job, self.run, self.ranks, self.step, self.created_ns

    @property
    def restorable(self) -> bool:
        """Whether a restart could go on from it now."""
        return bool(self.tiers) and not self.is_bad


def changes(before: Sequence[Standing], now: Sequence[Standing]) -> tuple[list[Standing], list[Standing]]:
    """What is to be said of ``now`` to whoever knows ``before``: those that are new or otherwise, and those gone."""
    known = {one.key: one for one in before}
    there = {one.key for one in now}
    return [one for one in now if known.get(one.key) != one], [known[key] for key in known.keys() - there]


def changed(before: Iterable[Standing], news: Iterable[Standing], gone: Iterable[Standing]) -> tuple[Standing, ...]:
    """What ``changes`` was told of."""
    found = {one.key: one for one in before}
    for one in gone:
        found.pop(one.key, None)
    found.update((one.key, one) for one in news)
    return tuple(found.values())


def merged(standings: Iterable[Standing]) -> tuple[Standing, ...]:
    """One for each step of a run, with all tiers on which several have seen it; the newest first."""
    found: dict[tuple[Job, str, int, int | None], Standing] = {}
    for one in standings:
        key = (one.job, one.run, one.ranks, one.step)
        known = found.get(key)
        if known is None:
            found[key] = one
            continue
        newer = max(known, one, key=lambda standing: standing.created_ns)
        tiers = tuple(tier for tier in TIERS if tier in known.tiers or tier in one.tiers)
        size = newer.size or max(known.size, one.size)
        found[key] = replace(newer, tiers=tiers, size=size, is_bad=known.is_bad or one.is_bad)
    return tuple(sorted(found.values(), key=lambda one: (str(one.job), -one.created_ns, one.run)))


def newest_by_tier(standings: Iterable[Standing]) -> Mapping[tuple[Job, str], int]:
    """When the newest complete checkpoint of each job on each tier was saved, since 1970 in nanoseconds."""
    newest: dict[tuple[Job, str], int] = {}
    for one in standings:
        if one.is_bad:
            continue
        for tier in one.tiers:
            newest[one.job, tier] = max(one.created_ns, newest.get((one.job, tier), 0))
    return newest
