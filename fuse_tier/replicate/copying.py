"""Copying one snapshot to one place: in turns, counted, told; and what is remembered of places that failed.

What fails is the place's failure alone: it is told once, and tried again after a pause that grows. A copy counts
when the receiver has verified and committed it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.blobs import Progress
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, SnapshotConflict, TierFull
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.traffic import Meter, Savings
from fuse_tier.replicate.turns import Turns
from fuse_tier.tiers.base import Tier, TierName, no_progress
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_COPIES_AT_ONCE = 4  # to one kind of place, and
_COPIES_AT_PLACE = 2  # of these to one: so that a slow one does not have them all; and
_LATE_COPIES = 4  # besides, of those that are late: two places may be slow, and memory and threads stay bounded
_PATIENT_BYTES_PER_SECOND = 10e6  # a copy that is slower is late


@dataclass(slots=True)
class _Trouble:
    """A place that failed: when to try it again."""

    pause: float
    until: float
    reason: str


class Troubles:
    """The places that failed, for one volume."""

    def __init__(self) -> None:
        self._by_place: dict[str, _Trouble] = {}
        self._alive: Mapping[str, str] = {}
        self._jitter = random.Random()  # noqa: S311 - spreads retries, guards nothing

    def may_try(self, place: str) -> bool:
        """Whether a place has not failed, or long enough ago."""
        return place not in self._by_place or self._by_place[place].until <= trio.current_time()

    def refusing(self) -> set[str]:
        """The places that are not to be tried just now."""
        return {place for place in self._by_place if not self.may_try(place)}

    def next_try(self) -> float:
        """When, by trio's clock, a place may be tried again; infinity when none waits."""
        now = trio.current_time()
        return min(
            (trouble.until for trouble in self._by_place.values() if trouble.until > now), default=float("inf")
        )

    def failed(self, place: str, reason: str) -> bool:
        """A place has failed; whether that is new."""
        before = self._by_place.get(place)
        pause = min(_LONGEST_PAUSE, before.pause * 2 if before else _FIRST_PAUSE)
        until = trio.current_time() + pause * self._jitter.uniform(0.75, 1.25)
        self._by_place[place] = _Trouble(pause, until, reason)
        return before is None

    def reason(self, place: str) -> str:
        """Why a place failed last; empty: it has not."""
        return self._by_place[place].reason if place in self._by_place else ""

    def recovered(self, place: str) -> bool:
        """A place has done what it should; whether it had failed before."""
        return self._by_place.pop(place, None) is not None

    def look_at(self, alive: Mapping[str, str]) -> None:
        """``alive`` are places with their instances: one that has come back, or is another now, is tried at once."""
        for place, instance in alive.items():
            if self._alive.get(place) != instance:
                self._by_place.pop(place, None)
        self._alive = alive


def patience_with(manifest: Manifest) -> float:
    """Within how many seconds a snapshot should have been copied: then others do not wait for that any more."""
    return Deadline.COPY + manifest.size / _PATIENT_BYTES_PER_SECOND


class Copier:
    """Copies snapshots out of the RAM tier, so many at a time to each kind of place and to each one of them."""

    def __init__(self, ram: RamTier) -> None:
        self._ram = ram
        kinds = (TierName.PEER, TierName.BUCKET)
        self._turns = {kind: Turns(_COPIES_AT_ONCE, at_place=_COPIES_AT_PLACE, late=_LATE_COPIES) for kind in kinds}
        self.meters = {kind: Meter() for kind in kinds}
        self.savings = {kind: Savings() for kind in kinds}
        self.drains_since_ns: int | None = None  # by the clock that dates snapshots; None: this node stays

    async def copy(
        self,
        manifest: Manifest,
        tier: Tier,
        place: str,
        troubles: Troubles,
        copies: int,
        progress: Progress = no_progress,
    ) -> bool:
        """Copies one snapshot to one place; whether it is there now. Survives that place's failures.

        ``copies`` is how many there are already. Raises SnapshotConflict.
        """

        def count(moved: int) -> None:
            failpoints.reached("copy.moving")
            self.meters[tier.name].add(moved)
            progress(moved)
            metrics.bytes_moved(tier.name.value, "out", moved)

        urgency, patience = (lambda: self._urgency(manifest, copies)), patience_with(manifest)
        async with self._turns[tier.name].taken(urgency, place, patience):
            started = trio.current_time()
            log.debug("copy.begun", snapshot=str(manifest.id), place=tier.place)
            try:
                failpoints.reached("copy.begun")
                await tier.store(manifest.blobs, self._ram, count)
                failpoints.reached("copy.stored")
                await tier.commit(manifest)
                failpoints.reached("copy.committed")
            except SnapshotConflict as conflict:
                troubles.failed(place, str(conflict))
                raise
            except (FuseTierError, OSError) as error:
                _tell(manifest, tier, error, is_new=troubles.failed(place, str(error)))
                return False
            seconds = trio.current_time() - started
        self.savings[tier.name].named_bytes += manifest.size
        if troubles.recovered(place):
            log.info("copy.recovered", snapshot=str(manifest.id), place=tier.place)
        metrics.copied(tier.name.value, seconds)
        metrics.committed(tier.name.value)
        log.info(
            "snapshot.copied",
            identity=str(manifest.id.identity),
            snapshot=manifest.id.number,
            tier=tier.name.value,
            place=tier.place,
            bytes=manifest.size,
            seconds=round(seconds, 3),
        )
        return True

    def _urgency(self, manifest: Manifest, copies: int) -> tuple[int, ...]:
        """What has fewest copies comes first. Of a node that drains then what was complete before it began to, the
        newest first, and last what is saved meanwhile: there may not be time for all.
        """
        since = self.drains_since_ns
        if since is None:
            return (copies,)
        return (copies, manifest.created_ns > since, -manifest.created_ns)


def _tell(manifest: Manifest, tier: Tier, error: Exception, *, is_new: bool) -> None:
    if isinstance(error, TierFull) and tier.name is TierName.PEER:
        # Its RAM is its own jobs' first: another peer is asked.
        metrics.copy_refused()
        log.info("copy.refused", snapshot=str(manifest.id), place=tier.place, reason=str(error))
        return
    metrics.error("copy")
    if is_new:
        log.warning("copy.failed", snapshot=str(manifest.id), place=tier.place, reason=str(error))
