"""Giving up what was superseded: retention on the RAM tier and in the bucket, and collecting what it leaves.

Which snapshots go is decided in retention.py; this carries it out, for every volume that the RAM tier lists,
replicas included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.errors import Damaged, FuseTierError, NotFound
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.retention import plan_retention
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Tier, TierName

log = structlog.get_logger(__name__)

_SETTLE_SECONDS = 1.0
_RAM_GRACE_SECONDS = 1.0  # what snapshots that are being made or received need is spared by the tier itself
_LOOK_EVERY_SECONDS = 30.0
_ROOMY_PART = 0.5  # of the RAM tier is free
_SHORT_SECONDS = 0.1  # instead of the settle time and the grace, when less is
_BUCKET_GRACE_SECONDS = 3600.0  # likewise, of nodes that may be slow
_BUCKET_COLLECT_EVERY_SECONDS = 3600.0


class Upkeep:
    """Keeps the tiers of one node from filling up with the past."""

    def __init__(
        self, places: Places, find: Callable[[Identity], Volume | None], keep_ram: int, keep_bucket: int
    ) -> None:
        self._places = places
        self._find = find
        self._keep_ram = keep_ram
        self._keep_bucket = keep_bucket
        self._bucket_collected = float("-inf")
        self._run_of: dict[SnapshotId, str] = {}  # what their manifests say, which never changes
        self.wake = Broadcast()  # announced when a snapshot was committed to the RAM tier, by whomever

    async def run(self) -> None:
        """Runs until cancelled."""
        seen = -1
        while True:
            with trio.move_on_after(_LOOK_EVERY_SECONDS):
                await self.wake.wait_beyond(seen)
            await trio.sleep(_SETTLE_SECONDS if self._is_roomy() else _SHORT_SECONDS)
            seen = self.wake.version
            try:
                await self._tidy_ram()
            except (FuseTierError, OSError) as error:
                metrics.error("retention")
                log.warning("retention.postponed", place=self._places.ram.place, reason=str(error))

    def _is_roomy(self) -> bool:
        """Whether what was superseded may stay a moment longer: going through the tier has its price, too."""
        ram = self._places.ram
        return ram.free_bytes() > ram.capacity_bytes() * _ROOMY_PART

    async def _tidy_ram(self) -> None:
        listed: dict[Identity, list[int]] = {}
        for snapshot in await self._places.ram.snapshots():
            listed.setdefault(snapshot.identity, []).append(snapshot.number)
        for identity, numbers in listed.items():
            volume = self._find(identity)
            elsewhere: set[int] = set()
            in_use: set[int] = set()
            if volume is not None:
                elsewhere = {*volume.held(TierName.PEER).values(), *volume.held(TierName.BUCKET).values()}
                in_use = set(volume.in_use)
            await self._drop(
                self._places.ram,
                identity,
                plan_retention(
                    await self._runs(self._places.ram, identity, numbers),
                    self._keep_ram,
                    durable_elsewhere=elsewhere,
                    in_use=in_use,
                ),
            )
        failpoints.reached("retention.collecting")
        await self._places.ram.collect(_RAM_GRACE_SECONDS if self._is_roomy() else _SHORT_SECONDS)

    async def tidy_bucket(self, identity: Identity) -> None:
        """Retention of one volume in the bucket, after a commit there; what fails is left to the next."""
        bucket = self._places.bucket
        if bucket is None:
            return
        try:
            numbers = [snapshot.number for snapshot in await bucket.snapshots(identity)]
            volume = self._find(identity)
            in_use = set(volume.in_use) if volume is not None else set()
            runs = await self._runs(bucket, identity, numbers)
            await self._drop(bucket, identity, plan_retention(runs, self._keep_bucket, in_use=in_use))
            if trio.current_time() - self._bucket_collected > _BUCKET_COLLECT_EVERY_SECONDS:
                self._bucket_collected = trio.current_time()
                freed = await bucket.collect(_BUCKET_GRACE_SECONDS)
                log.info("bucket.collected", place=bucket.place, bytes=freed)
        except FuseTierError as error:
            metrics.error("retention")
            log.warning("retention.postponed", place=bucket.place, identity=str(identity), reason=str(error))

    async def _runs(self, tier: Tier, identity: Identity, numbers: Collection[int]) -> dict[int, str]:
        """The run of each snapshot. One whose manifest cannot be read belongs to a run of its own."""
        runs: dict[int, str] = {}
        for number in numbers:
            snapshot = SnapshotId(identity, number)
            if snapshot not in self._run_of:
                try:
                    self._run_of[snapshot] = (await tier.manifest(snapshot)).lineage.run
                except (Damaged, NotFound):
                    runs[number] = ""
                    continue
            runs[number] = self._run_of[snapshot]
        return runs

    async def _drop(self, tier: Tier, identity: Identity, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            await tier.drop(SnapshotId(identity, number))
            failpoints.reached("retention.dropped")
            self._run_of.pop(SnapshotId(identity, number), None)
            log.info("snapshot.dropped", identity=str(identity), snapshot=number, place=tier.place)
