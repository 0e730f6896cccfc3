"""Restoring from a bucket with no node: nothing is needed but its URL and an identity.

The same rules as in a cluster: names first, contents in parallel, every byte verified, and the directory gets its
name when all of it is whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.checkpoints import Checkpoint, Job, step_of
from fuse_tier.errors import MalformedManifest, NotFound, TierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.records import JobListing, JobRecords
from fuse_tier.replicate.staging import StagingDirectory, lost_paths, make_tree
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.tree import check_new_directory
from fuse_tier.several import as_of_step
from fuse_tier.tiers.bucket import BucketTier

log = structlog.get_logger(__name__)

_NAMED_AT_MOST = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which state of a volume. A ``step`` with a ``snapshot`` is that step of it; else at most one is given."""

    identity: Identity
    snapshot: int = 0
    version: str = ""  # the name of a complete checkpoint
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The snapshot to restore. ``newer`` are those passed over because they are part of no complete checkpoint."""

    snapshot: SnapshotId
    checkpoint: str = ""  # its name; empty: it was chosen as a snapshot
    newer: tuple[int, ...] = ()
    is_forced: bool = False
    step: int | None = None  # newer ones of the snapshot are left out


@dataclass(frozen=True, slots=True)
class RestoredFrom:
    """What was restored. ``is_forced``: because ``restore.version`` says so."""

    snapshot: SnapshotId
    checkpoint: str
    step: int | None
    files: int
    size: int
    seconds: float
    newer: tuple[int, ...]
    is_forced: bool
    unreadable: tuple[str, ...]  # what the tree lacks, because its content is damaged or gone


async def restore_from_bucket(
    bucket: BucketTier, wanted: Wanted, target: str, report: Report, *, partial: bool = False
) -> RestoredFrom:
    """Makes a plain tree at ``target``, which must be missing or empty.

    Raises MountError (the target), NotFound (no such snapshot, checkpoint or step), Damaged, TierError; nothing is
    left at the target then. A ``partial`` tree lacks only what is damaged or gone.
    """
    started = trio.current_time()
    await trio.to_thread.run_sync(check_new_directory, target)
    report.begin(f"looking into {bucket.place}")
    found = await find(bucket, wanted)

    async def fetch(manifest: Manifest, staging: StagingDirectory) -> dict[Blob, TierError]:
        return (await bucket.fetch(manifest.blobs, staging, report.moved)).failed

    async def bring() -> tuple[Manifest, Manifest]:
        manifest = await bucket.manifest(found.snapshot)
        if found.step is not None:
            manifest = as_of_step(manifest, found.step)
        report.begin(f"restoring {manifest.id}", sum(blob.size for blob in manifest.blobs))
        return manifest, await make_tree(manifest, target, lambda staging: fetch(manifest, staging), partial=partial)

    whole, manifest = await JobRecords(bucket).while_using(found.snapshot, bring)
    files = sum(1 for entry in manifest.entries if entry.blob is not None)
    seconds = trio.current_time() - started
    lost = lost_paths(whole, manifest)
    return RestoredFrom(
        manifest.id,
        found.checkpoint,
        step_of(whole),
        files,
        manifest.size,
        seconds,
        found.newer,
        found.is_forced,
        lost,
    )


@dataclass(frozen=True, slots=True)
class Listed:
    """A complete checkpoint, for people. ``snapshots`` are those of one volume when one was asked for."""

    job: str
    checkpoint: str
    run: str
    step: int | None
    created_ns: int
    snapshots: dict[str, int]  # by replica


async def list_checkpoints(
    bucket: BucketTier, identity: Identity | None = None
) -> tuple[list[Listed], list[MalformedManifest]]:
    """The complete checkpoints in a bucket, oldest first in each job, of all jobs or of a volume's; and what was
    wrong with those records that cannot be read.

    Raises TierUnavailable, TierRefused.
    """
    records = JobRecords(bucket)
    found: list[Listed] = []
    unreadable: list[MalformedManifest] = []
    for job in await records.every() if identity is None else (Job.of(identity),):
        for name in (await records.listing(job)).checkpoints:
            try:
                one = await records.checkpoint(job, name)
            except NotFound:  # given up since it was listed
                continue
            except MalformedManifest as error:
                unreadable.append(error)
                continue
            snapshots = {
                replica: number
                for replica, number in one.snapshots.items()
                if identity is None or replica == identity.replica
            }
            if snapshots:
                found.append(Listed(str(job), name, one.lineage.run, one.step, one.created_ns, snapshots))
    return found, unreadable


async def find_checkpoint(bucket: BucketTier, job: Job, step: int | None) -> Checkpoint:
    """A job's newest complete checkpoint, or that of a step. Raises NotFound, telling which there are."""
    records = JobRecords(bucket)
    known: list[str] = []
    for name in reversed((await records.listing(job)).checkpoints):
        try:
            checkpoint = await records.checkpoint(job, name)
        except MalformedManifest as error:
            log.warning("restore.record_unreadable", checkpoint=name, job=str(job), reason=str(error))
            continue
        if step in (None, checkpoint.step):
            return checkpoint
        known.append(f"{name} (step {checkpoint.step})")
    what = "complete checkpoint" if step is None else f"complete checkpoint of step {step}"
    raise NotFound(f"{bucket.place} has no {what} of {job}: there are {', '.join(known[:_NAMED_AT_MOST]) or 'none'}")


async def find(bucket: BucketTier, wanted: Wanted) -> Found:
    """The snapshot that is wanted: without more words that of the newest complete checkpoint.

    A volume that is part of none gives its newest snapshot. Raises NotFound, telling what there is.
    """
    job, identity = Job.of(wanted.identity), wanted.identity
    records = JobRecords(bucket)
    listing = await records.listing(job)
    numbers = sorted(snapshot.number for snapshot in listing.snapshots if snapshot.identity == identity)
    if wanted.snapshot:
        if wanted.snapshot not in numbers:
            raise NotFound(_no(f"snapshot {wanted.snapshot}", bucket, wanted, numbers))
        return Found(SnapshotId(identity, wanted.snapshot), step=wanted.step)
    if not numbers:
        replicas = sorted({snapshot.identity.replica for snapshot in listing.snapshots})
        others = f"; of {job} there are {', '.join(replicas[:_NAMED_AT_MOST])}" if replicas else ""
        raise NotFound(
            f"{bucket.place} has no snapshot of {identity}{others}: see that bucket and identity are right"
        )
    if wanted.version or wanted.step is not None:
        return await _find_checkpoint(bucket, records, wanted, listing)
    forced = listing.forced
    for name in reversed(listing.checkpoints):
        try:
            checkpoint = await records.checkpoint(job, name)
        except MalformedManifest as error:
            log.warning("restore.record_unreadable", checkpoint=name, job=str(job), reason=str(error))
            continue
        if forced is not None and not listing.ends_forced(checkpoint):
            break
        forced = None
        if checkpoint.number_of(identity) in numbers:
            return _part(checkpoint, name, identity, numbers)
    if forced is not None:
        part = _part(await records.forced_checkpoint(job, forced), forced, identity, numbers)
        return replace(part, newer=(), is_forced=True)
    return Found(SnapshotId(identity, numbers[-1]))


async def _find_checkpoint(bucket: BucketTier, records: JobRecords, wanted: Wanted, listing: JobListing) -> Found:
    numbers = sorted(snapshot.number for snapshot in listing.snapshots if snapshot.identity == wanted.identity)
    known: list[str] = []
    for name in reversed(listing.checkpoints):
        if wanted.version and name != wanted.version:
            known.append(name)
            continue
        checkpoint = await records.checkpoint(listing.job, name)
        if wanted.step is not None and checkpoint.step != wanted.step:
            known.append(f"{name} (step {checkpoint.step})")
            continue
        return _part(checkpoint, name, wanted.identity, numbers)
    what = f"checkpoint {wanted.version}" if wanted.version else f"complete checkpoint of step {wanted.step}"
    raise NotFound(_no(what, bucket, wanted, known))


def _part(checkpoint: Checkpoint, name: str, identity: Identity, numbers: list[int]) -> Found:
    number = checkpoint.number_of(identity)
    if number is None or number not in numbers:
        raise NotFound(f"checkpoint {name} of {checkpoint.job} has no snapshot of {identity}: name another")
    newer = tuple(one for one in numbers if one > number)
    return Found(SnapshotId(identity, number), name, newer, step=checkpoint.step)


def _no(what: str, bucket: BucketTier, wanted: Wanted, known: list[str] | list[int]) -> str:
    shown = ", ".join(map(str, known[-_NAMED_AT_MOST:] if wanted.snapshot else known[:_NAMED_AT_MOST])) or "none"
    return f"{bucket.place} has no {what} of {wanted.identity}: there are {shown}"
