"""A Cloud Storage bucket as a tier: the one that outlives the cluster.

Owns the order of requests, which keeps the invariant: a manifest is written after everything that it names was
seen to be there, by one request that fails if another one of that number is there. Names and contents of objects
are those of ``docs/bucket-layout.md``. Nothing is asked of the bucket before the first call, and a process that
makes none never loads google-cloud-storage.

**Collecting beside writers.** Any node may collect while another one is about to name an old object, and Cloud
Storage has no lock for that. So an object's age counts from when it was last relied upon: who finds that
something is there already, and older than RELIANCE_SECONDS, marks it as used. What was seen or written is
trusted for RELIANCE_SECONDS, and looked at again when ``commit`` comes later than that. ``collect`` lists objects
first and manifests afterwards, and removes what is older than the grace and was not marked since. With a grace of
at least SAFE_GRACE_SECONDS (twice RELIANCE_SECONDS, and ten minutes for the commit itself), whoever saw an object
that is now old enough saw it so long ago that its manifest is in the list, or that it must look again. A shorter
grace is for when no other process writes. Within one process commits and removals take turns.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob, Progress, Sink, Source
from fuse_tier.checkpoints import Job
from fuse_tier.config import NodeConfig
from fuse_tier.errors import (
    IncompleteSnapshot,
    MalformedManifest,
    NotFound,
    SnapshotConflict,
    TierError,
    TierUnavailable,
)
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest, quote
from fuse_tier.tiers import bucket_collection
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers import bucket_transfer as transfer
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.tiers.bucket_claims import Claims
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_documents import Documents
from fuse_tier.tiers.bucket_errors import Protected
from fuse_tier.tiers.bucket_fetch import Fetching
from fuse_tier.tiers.bucket_listing import list_all
from fuse_tier.tiers.bucket_manifests import Manifests
from fuse_tier.tiers.bucket_many import Removable, Removal, remove
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_pace import Pace
from fuse_tier.tiers.bucket_parts import PartsUpload
from fuse_tier.tiers.bucket_presence import RELIANCE_SECONDS, Presence
from fuse_tier.tiers.bucket_receive import Destination, IntoNothing, IntoSink
from fuse_tier.tiers.bucket_session import Session
from fuse_tier.tiers.bucket_settings import Settings, settings_of
from fuse_tier.tiers.bucket_store import Storing
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_work import Work
from fuse_tier.verified import VerifyReport

log = structlog.get_logger(__name__)

SAFE_GRACE_SECONDS: Final = 2 * RELIANCE_SECONDS + 600.0
_PARALLEL: Final = 8
_PATIENCE_SECONDS: Final = 15.0
_TRIES: Final = 4
_MARKER_BYTES: Final = 64 << 10
_LEFT_SECONDS: Final = 1.0  # for requests that nobody waits for to end, before their connections are closed
_NAMED_AT_MOST: Final = 3  # of what is missing, in a message


async def _nothing() -> Collection[SnapshotId]:
    return ()


class BucketTier:
    """A bucket, or the part of one below a prefix.

    ``url`` is ``gs://BUCKET[/PREFIX]``; ``endpoint`` is that of an emulator, without which Cloud Storage is asked
    with default credentials. Up to ``parallel`` requests run at a time; one that fails is repeated until it has
    failed for ``patience`` seconds. Raises ConfigError for a URL that is none. End it with ``aclose``.
    """

    name = TierName.BUCKET

    def __init__(
        self,
        url: str,
        endpoint: str | None = None,
        *,
        parallel: int = _PARALLEL,
        patience: float = _PATIENCE_SECONDS,
        key_file: str | None = None,
        pace: Pace | None = None,
    ) -> None:
        place = layout.BucketPlace.parse(url)
        self.place = str(place)
        self._prefix = place.prefix
        self._session = Session(place, endpoint, key_file, parallel)
        self._objects = Objects(place, self._session, pace or Pace())
        self._work = Work(parallel, patience)
        self._presence = Presence(self._objects, self._work)
        self._manifests = Manifests(self._objects, self._work, self._presence, self.place)
        self._parts = PartsUpload(self._objects, self._work)
        self._claims = Claims(self._objects, self._work)
        self._parallel = parallel
        self._named_or_removed = trio.Lock()
        self._is_ours = False
        self.documents = Documents(self._objects, self._work, self._check_layout)

    async def aclose(self) -> None:
        """Closes the connections. A later call opens new ones."""
        await trio.to_thread.run_sync(self._work.wait_for_left, _LEFT_SECONDS)
        await trio.to_thread.run_sync(self._session.close)

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """Which of these are not here yet. Raises TierUnavailable, TierRefused, as all methods do."""
        await self._check_layout()
        return await self._presence.missing(blobs)

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        """Uploads blobs, small ones in packs when there are many. Raises what the source raises, and Damaged.

        Each was hashed before it was sent, and Cloud Storage has seen the CRC-32C of what was hashed.
        """
        await self._check_layout(make=True)
        storing = Storing(
            self._objects, self._work, self._presence, self._parts, self._claims, self._parallel, source, progress
        )
        await storing.store(blobs)

    async def commit(self, manifest: Manifest) -> None:
        """Makes a snapshot visible. Raises IncompleteSnapshot, SnapshotConflict."""
        await self._check_layout(make=True)
        blobs = manifest.blobs
        async with self._named_or_removed:
            absent = await self._presence.missing(blobs)
            if absent:
                named = ", ".join(blob.name for blob in sorted(absent)[:_NAMED_AT_MOST])
                raise IncompleteSnapshot(
                    f"{manifest.id} lacks {len(absent)} of {len(blobs)} blobs in {self.place}: {named}"
                )
            ours = await self._manifests.write(manifest)
        if not ours:
            highest = max((snapshot.number for snapshot in await self.snapshots(manifest.id.identity)), default=0)
            raise SnapshotConflict(f"{self.place} has another snapshot {manifest.id} already", highest)

    def now(self) -> float:
        """Seconds since 1970 by the service's clock, of which its last answer told."""
        return self._objects.now()

    async def settings(self) -> Settings | None:
        """What its owner has set; None where we may not know."""
        return await self._work.run(lambda task: settings_of(self._session, self._prefix, task))

    async def snapshots(self, identity: Identity | None = None) -> Sequence[SnapshotId]:
        """Everything listed, of one volume or of all, in order. Reads no manifest."""
        await self._check_layout()
        folder = layout.manifest_folder(identity)
        return await self._work.run(lambda task: bucket_collection.list_snapshots(self._objects, folder, task))

    async def snapshots_of(self, job: Job) -> dict[SnapshotId, float]:
        """Everything listed of all volumes of a job, in order, and when it was committed, by the service's clock."""
        await self._check_layout()

        def look(task: Task) -> dict[SnapshotId, float]:
            found = list_all(self._objects, layout.job_folder(job), task)
            known = ((layout.snapshot_of(stored.name), stored.created) for stored in found)
            return {snapshot: created for snapshot, created in known if snapshot is not None}

        return await self._work.run(look)

    async def manifest(self, snapshot: SnapshotId) -> Manifest:
        """Raises NotFound, MalformedManifest."""
        await self._check_layout()
        return await self._manifests.read(snapshot)

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        """Downloads as many as possible into the sink, which verifies them."""
        await self._check_layout()
        fetching = self._fetching(IntoSink(sink), progress, in_ranges=True)
        return await fetching.bring(set(blobs))

    async def drop(self, snapshot: SnapshotId) -> None:
        """Takes a snapshot from the list. One that is not there is no error. Raises Protected."""
        for kept in (await self.drop_all([snapshot])).kept:
            raise Protected(kept.reason)

    async def drop_all(self, snapshots: Collection[SnapshotId]) -> Removal:
        """Takes snapshots from the list, as far as the bucket lets us; says which it keeps, and why."""
        await self._check_layout()
        wanted = [Removable(layout.manifest_object(snapshot)) for snapshot in snapshots]
        return await self._work.run(lambda task: remove(self._objects, wanted, task))

    async def collect(self, grace_seconds: float) -> int:
        """Removes blobs that no manifest names and nobody relied upon for so long; gives the bytes freed.

        Raises MalformedManifest, and removes nothing, when what a manifest names cannot be read. For what is safe
        beside other processes see the module.
        """
        return (await self.collect_garbage(grace_seconds)).freed

    async def collect_garbage(
        self, grace_seconds: float, *, dry_run: bool = False, restoring: bucket_collection.Restoring = _nothing
    ) -> Removal:
        """The same, and tells which objects went, or would go (``dry_run``), and which the bucket keeps, and why.

        Nothing goes while one of those that are ``restoring`` is not listed any more.
        """
        await self._check_layout()
        started = time.monotonic()
        collecting = bucket_collection.Collecting(
            self._objects, self._work, self._presence, self._named_or_removed, restoring
        )
        removal = await collecting.collect(grace_seconds, dry_run=dry_run)
        if dry_run:
            return removal
        if removal.freed:
            seconds = round(time.monotonic() - started, 3)
            log.info("bucket.collected", bytes=removal.freed, objects=len(removal.removed), seconds=seconds)
        if removal.kept:
            log.info("bucket.protected", objects=len(removal.kept), reason=removal.kept[0].reason)
        return removal

    async def verify(self, identity: Identity | None = None, progress: Progress = no_progress) -> VerifyReport:
        """Downloads and hashes everything listed, and keeps nothing of it. Raises TierUnavailable, TierRefused."""
        snapshots = await self.snapshots(identity)
        damaged: list[str] = []
        checked: dict[Blob, TierError | None] = {}
        for snapshot in snapshots:
            try:
                manifest = await self.manifest(snapshot)
            except NotFound:  # dropped since it was listed
                continue
            except MalformedManifest as error:
                damaged.append(str(error))
                continue
            fetching = self._fetching(IntoNothing(), progress, in_ranges=False)
            fetched = await fetching.bring(set(manifest.blobs - checked.keys()))
            checked |= dict.fromkeys(fetched.arrived) | fetched.failed
            for entry in manifest.entries:
                failed = None if entry.blob is None else checked[entry.blob]
                if isinstance(failed, TierUnavailable):
                    raise failed
                if failed is not None:
                    damaged.append(f"{snapshot}: {quote(entry.path)}: {failed}")
        return VerifyReport(len(snapshots), len(checked), sum(blob.size for blob in checked), tuple(damaged))

    def _fetching(self, destination: Destination, progress: Progress, *, in_ranges: bool) -> Fetching:
        return Fetching(
            self._objects, self._work, self._presence, destination, progress, self._parallel, in_ranges=in_ranges
        )

    async def _check_layout(self, make: bool = False) -> None:
        """Sees once that the bucket is there and of a layout that we know; says so in it before the first write."""
        if not self._is_ours:
            self._is_ours = await self._work.run(lambda task: self._read_marker(task, make))

    def _read_marker(self, task: Task, make: bool) -> bool:
        # Read before it is written: all nodes that begin at once would change one object, and the service lets nobody
        # do so more than about once a second.
        for _ in range(_TRIES):
            try:
                text = transfer.read_whole(self._objects, layout.MARKER, _MARKER_BYTES, task)
            except NotFound:  # nobody has written below this prefix; or there is no bucket, which a listing tells
                if not make:
                    task.retry(lambda: next(self._objects.listed(layout.MANIFESTS, task.stop, at_most=1), None))
                    return False
                if self._write_marker(task):
                    return True
            else:
                layout.check_marker(text, self.place)
                return True
        raise TierUnavailable(f"{self.place}/{layout.MARKER} is written and removed by others: it cannot be read now")

    def _write_marker(self, task: Task) -> bool:
        """False if somebody else has done so just now."""
        content = MemoryContent(layout.marker_text())
        put = task.retry(lambda: self._objects.put(layout.MARKER, content, 0, lambda _: None, task.stop))
        return put is not None


def bucket_of(config: NodeConfig) -> BucketTier | None:
    """The bucket that a node is configured with."""
    if config.bucket is None:
        return None
    pace = Pace(config.limits.bucket, config.limits.bucket_cpu)
    return BucketTier(config.bucket.url, config.bucket.endpoint, key_file=config.bucket.credentials, pace=pace)
