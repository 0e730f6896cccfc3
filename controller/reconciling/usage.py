"""What a configuration's nodes are used for: a pure decision from what the coordinator knows of the whole cluster.

A job is a configuration's when one of its nodes has a volume of the job mounted, or a snapshot of it in its RAM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from fuse_tier.checkpoints import Job
from fuse_tier.members import Picture
from fuse_tier.standing import BUCKET, Standing


@dataclass(frozen=True, slots=True)
class Usage:
    """What the coordinator tells of a configuration's nodes."""

    volumes: int
    step: int | None = None  # of the newest complete checkpoint
    backup: str = ""  # when the newest complete one in the bucket was saved, as the API writes times


def usage_of(nodes: Collection[str], picture: Picture, standings: Iterable[Standing]) -> Usage:
    """Of a configuration with these nodes."""
    mounted = [identity for one in picture.members if one.alive and one.node in nodes for identity in one.mounted]
    jobs = {Job.of(identity) for identity in mounted}
    for volume in picture.volumes:
        if any(holder.node in nodes for holder, _ in volume.location.holders):
            jobs.add(Job.of(volume.identity))
    complete = [one for one in standings if one.job in jobs and one.restorable]
    newest = max((one for one in complete if one.step is not None), key=_saved, default=None)
    backed_up = max((one for one in complete if BUCKET in one.tiers), key=_saved, default=None)
    return Usage(
        len(mounted),
        newest.step if newest is not None else None,
        _time(backed_up.created_ns) if backed_up is not None else "",
    )


def _time(since_1970_ns: int) -> str:
    return datetime.fromtimestamp(since_1970_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _saved(standing: Standing) -> int:
    return standing.created_ns
