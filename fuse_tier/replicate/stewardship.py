"""What one node does for the bucket, for the whole cluster: the steward's work.

It says which checkpoints are complete, gives up what was superseded, collects what that leaves, and answers those
who are about to restore. Any node can do it; all of them know who is to (``election.py``). It keeps no truth of its
own: everything is read from the bucket, and two stewards at once harm nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.completeness import newest_complete
from fuse_tier.errors import Damaged, FuseTierError, NotFound
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.parallel import for_each
from fuse_tier.replicate.backup import Turn, Turns
from fuse_tier.replicate.backups_of_job import BackupsOfJob, backups_of
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.catalog import READ_AT_ONCE, Catalog
from fuse_tier.replicate.records import InBucket, JobListing, JobRecords
from fuse_tier.replicate.retention import JobPlan, Keep, plan_job_retention
from fuse_tier.replicate.steps import Report
from fuse_tier.standing import BUCKET, Standing, newest_by_tier
from fuse_tier.tiers.bucket import SAFE_GRACE_SECONDS, BucketTier
from fuse_tier.tiers.bucket_layout import manifest_object
from fuse_tier.tiers.bucket_many import Kept

log = structlog.get_logger(__name__)

_GATHER_SECONDS = 0.5  # ranks finish one after another: one look for all of them
_FIRST_PAUSE = 5.0  # after a failure
_LOOK_EVERY_SECONDS = 600.0  # at everything, whatever was heard
_COLLECT_EVERY_SECONDS = 3600.0
_TOLD_AT_MOST = 20


@dataclass(frozen=True, slots=True)
class _Known:
    """Everything about one job."""

    listing: JobListing
    newest: Checkpoint | None  # if it has no record yet
    records: dict[str, Checkpoint]
    plan: JobPlan
    saved: Mapping[SnapshotId, Saved | None]  # None: its manifest cannot be read


class Stewardship:
    """The steward's work on one bucket. ``mounted`` gives the replicas of a job that are mounted anywhere now."""

    def __init__(
        self,
        bucket: BucketTier,
        keep: Keep,
        mounted: Callable[[Job], frozenset[str]],
        is_steward: Callable[[], bool],
    ) -> None:
        self._bucket = bucket
        self._records = JobRecords(bucket)
        self._catalog = Catalog(bucket, self._records)
        self._keep = keep
        self._mounted = mounted
        self._is_steward = is_steward
        self._turns = Turns()
        self._noted: set[Job] = set()
        self._wake = Broadcast()
        self._collected = -math.inf
        self._standings: dict[Job, tuple[Standing, ...]] = {}
        self._is_troubled = False

    # ---- answers ----

    async def in_bucket(self, identity: Identity, version: str = "") -> InBucket:
        """What is listed of a volume, no earlier than now, and which snapshot it is to go back to.

        That is the part of the checkpoint ``version``, or of the one that the job's ``restore.version`` names. Raises
        NotFound or MalformedManifest when a version is named that cannot be restored; TierUnavailable, TierRefused.
        """
        job = Job.of(identity)
        listing = await self._catalog.listing(job)
        numbers = tuple(sorted(one.number for one in listing.snapshots if one.identity == identity))
        if not version and listing.forced is None:
            return InBucket(numbers)
        known = await self._catalog.checkpoints(listing)
        if not version and any(map(listing.ends_forced, known.values())):
            return InBucket(numbers)
        name = version or listing.forced or ""
        checkpoint = known.get(name)
        if checkpoint is None and version:
            checkpoint = await self._records.checkpoint(job, version)
        elif checkpoint is None:
            checkpoint = await self._records.forced_checkpoint(job, name)
        number = checkpoint.number_of(identity)
        if number is None or number not in numbers:
            raise NotFound(f"checkpoint {name} of {job} in {self._bucket.place} has no snapshot of {identity}")
        return InBucket(numbers, number, name)

    async def of_job(self, identity: Identity, lineage: Lineage) -> BackupsOfJob:
        """The complete checkpoints of a volume's job, of one run and shape; also one that has no record yet.

        Raises NotFound or MalformedManifest when ``restore.version`` names one that is not there; TierUnavailable,
        TierRefused.
        """
        job = Job.of(identity)
        known = await self._look_at(job)
        checkpoints = [*known.records.values(), *([known.newest] if known.newest is not None else [])]
        forced: int | None = None
        if (version := known.listing.forced) is not None:
            checkpoint = known.records.get(version) or await self._records.forced_checkpoint(job, version)
            checkpoints.append(checkpoint)
            forced = checkpoint.step
        return BackupsOfJob(backups_of(identity, lineage, checkpoints, known.saved), forced)

    def turn(self, job: Job, run: str, step: int, every: float) -> Turn:
        """Which step of a job is backed up now."""
        return self._turns.ask(job, run, step, every, trio.current_time())

    def standings(self) -> tuple[Standing, ...]:
        """What is complete in the bucket, of the jobs that this node has looked at as the steward."""
        return tuple(one for several in self._standings.values() for one in several)

    def note(self, job: Job) -> None:
        """Something new of a job has come to the bucket: it will be looked at soon. Never waits."""
        self._noted.add(job)
        self._wake.announce()

    # ---- work ----

    async def run(self) -> None:
        """Does what is to be done until cancelled; what fails is done again, after growing pauses."""
        seen, looked, pause = 0, trio.current_time(), _FIRST_PAUSE
        again = math.inf
        while True:
            with trio.move_on_at(min(looked + _LOOK_EVERY_SECONDS, again)):
                seen = await self._wake.wait_beyond(seen)
                await trio.sleep(_GATHER_SECONDS)
            seen = self._wake.version
            at_everything = trio.current_time() >= looked + _LOOK_EVERY_SECONDS
            looked = trio.current_time() if at_everything else looked
            if await self._look(at_everything=at_everything):
                again, pause = math.inf, _FIRST_PAUSE
            else:
                again, pause = trio.current_time() + pause, min(2 * pause, _LOOK_EVERY_SECONDS)

    async def _look(self, *, at_everything: bool) -> bool:
        """Tends what was noted; whether all of it went well. One job's trouble is no other's."""
        jobs, self._noted = self._noted, set()
        trouble: FuseTierError | None = None
        is_steward = self._is_steward()
        if not is_steward:
            self._standings = {}
        try:
            if at_everything and is_steward:
                jobs |= set(await self._records.every())
        except FuseTierError as error:
            trouble = error
        for job in sorted(jobs):
            try:
                await self.tend(job)
            except FuseTierError as error:
                self._noted.add(job)
                trouble = error
        try:
            if jobs and is_steward and trouble is None:
                await self._collect_when_due()
        except FuseTierError as error:
            trouble = error
        metrics.checkpoints_complete(
            {(str(job), tier): at for (job, tier), at in newest_by_tier(self.standings()).items()}
        )
        self._tell(trouble)
        return trouble is None

    def _tell(self, trouble: FuseTierError | None) -> None:
        """Once until it is over: somebody may have to mend it, and it is tried again and again."""
        if trouble is not None:
            metrics.error("retention")
        if trouble is not None and not self._is_troubled:
            log.warning("retention.postponed", place=self._bucket.place, reason=str(trouble))
        elif trouble is None and self._is_troubled:
            log.info("retention.recovered", place=self._bucket.place)
        self._is_troubled = trouble is not None

    async def tend(self, job: Job) -> None:
        """Records the newest complete checkpoint of a job, and gives up what was superseded.

        Raises TierUnavailable and TierRefused.
        """
        known = await self._look_at(job)
        known = await self._record(known) or known
        await self._end_forced(known)
        await self._drop(known)
        self._note_standings(known)

    def _note_standings(self, known: _Known) -> None:
        gone = set(known.plan.records)
        self._standings[known.listing.job] = tuple(
            _standing(record, known.saved) for name, record in known.records.items() if name not in gone
        )

    async def _look_at(self, job: Job) -> _Known:
        listing = await self._catalog.listing(job)
        records = await self._catalog.checkpoints(listing)
        saved = await self._catalog.saved(listing)
        readable = [one for one in saved.values() if one is not None]
        newest = newest_complete(job, readable, self._mounted(job), records.values())
        plan = JobPlan()
        if records.keys() >= set(listing.checkpoints):
            plan = plan_job_retention(saved, records, self._keep, in_use=listing.in_use)
        # Else nothing goes: what a record names that cannot be read, by this version at least, is not known.
        return _Known(listing, newest, records, plan, saved)

    async def _record(self, known: _Known) -> _Known | None:
        """What is known after the newest complete checkpoint was recorded; None when it had been."""
        newest, job = known.newest, known.listing.job
        if newest is None:
            return None
        name = await self._records.record(newest, max(known.records, default=""))
        log.info(
            "checkpoint.complete", job=str(job), checkpoint=name, step=newest.step, snapshots=len(newest.snapshots)
        )
        return await self._look_at(job)

    async def _end_forced(self, known: _Known) -> None:
        listing = known.listing
        if any(map(listing.ends_forced, known.records.values())) and await self._records.end_forced(listing):
            log.info("checkpoint.version_ended", job=str(listing.job), version=listing.forced)

    async def _drop(self, known: _Known) -> tuple[Kept, ...]:
        """Records first: whoever reads one finds its snapshots. Gives what the bucket would not let go."""
        job, plan = known.listing.job, known.plan
        await self._records.forget_uses(known.listing)
        if not plan:
            return ()
        kept = (await self._records.drop(job, plan.records)).kept
        # A record that has to stay keeps what it names.
        staying = {name for name in plan.records if any(f"{job}/{name}." in one.name for one in kept)}
        named = {snapshot for name in staying for snapshot in known.records[name].ids}
        going = [snapshot for snapshot in plan.snapshots if snapshot not in named]
        removal = await self._bucket.drop_all(going)
        place, gone = self._bucket.place, set(removal.removed)
        for snapshot in going:
            if manifest_object(snapshot) in gone:
                log.info("snapshot.dropped", identity=str(snapshot.identity), snapshot=snapshot.number, place=place)
        kept += removal.kept
        if kept:
            log.info("retention.protected", job=str(job), objects=len(kept), reason=kept[0].reason)
        return kept

    async def _collect_when_due(self) -> None:
        if trio.current_time() - self._collected > _COLLECT_EVERY_SECONDS:
            await self._bucket.collect_garbage(SAFE_GRACE_SECONDS, restoring=self._records.restoring)
            self._collected = trio.current_time()

    # ---- on demand ----

    async def prune(self, report: Report, *, dry_run: bool) -> dict[str, Any]:
        """Does at once, for all jobs, what is done by and by; or (``dry_run``) tells what would be done.

        What snapshots leave is collected when the grace is over: ``freed_later_bytes`` are theirs. Raises
        TierUnavailable, TierRefused, MalformedManifest.
        """
        jobs: list[dict[str, Any]] = []
        kept: tuple[Kept, ...] = ()
        later = 0
        report.begin(f"looking into {self._bucket.place}")
        for job in await self._records.every():
            report.begin(f"looking at {job}")
            known = await self._look_at(job)
            size = await self._size_of_dropped(known)
            later += size
            jobs.append(
                {
                    "job": str(job),
                    "checkpoints": len(known.records),
                    "snapshots": len(known.listing.snapshots),
                    "drop_checkpoints": list(known.plan.records),
                    "drop_snapshots": [str(one) for one in known.plan.snapshots],
                    "in_use": sorted(str(one) for one in known.listing.in_use),
                    "bytes": size,
                }
            )
            if not dry_run:
                kept += await self._drop(known)
        report.begin("collecting what no snapshot names")
        removal = await self._bucket.collect_garbage(
            SAFE_GRACE_SECONDS, dry_run=dry_run, restoring=self._records.restoring
        )
        kept += removal.kept
        settings = await self._bucket.settings()
        return {
            "place": self._bucket.place,
            "dry_run": dry_run,
            "jobs": jobs,
            "garbage_objects": len(removal.removed),
            "freed_bytes": removal.freed,
            "freed_later_bytes": later,
            "grace_seconds": SAFE_GRACE_SECONDS,
            "soft_delete_seconds": settings.soft_delete_seconds if settings else None,
            "protected": [{"object": one.name, "reason": one.reason} for one in kept[:_TOLD_AT_MOST]],
            "protected_objects": len(kept),
        }

    async def _size_of_dropped(self, known: _Known) -> int:
        """Bytes that only snapshots that go name."""
        gone: set[Blob] = set()
        staying: set[Blob] = set()
        dropped = set(known.plan.snapshots)

        async def read(snapshot: SnapshotId) -> None:
            try:
                blobs = (await self._bucket.manifest(snapshot)).blobs
            except (NotFound, Damaged):
                return
            (gone if snapshot in dropped else staying).update(blobs)

        if dropped:
            await for_each(known.listing.snapshots, read, READ_AT_ONCE)
        return sum(blob.size for blob in gone - staying)


def _standing(record: Checkpoint, saved: Mapping[SnapshotId, Saved | None]) -> Standing:
    size = sum(one.size for part in record.ids if (one := saved.get(part)) is not None)
    ranks = record.lineage.world_size or len(record.snapshots)  # some of them may have partners' parts only
    return Standing(record.job, record.lineage.run, ranks, record.step, record.created_ns, size, (BUCKET,))
