"""What the bucket has of jobs, for many who ask at once.

Listings are shared: who asks gets one that began after it asked, so a thousand askers at one moment cost two
listings, and nobody is told of less than stood there when it asked. What manifests and records say never changes,
and is read once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import trio

from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.errors import Damaged, FuseTierError, NotFound
from fuse_tier.identity import SnapshotId
from fuse_tier.parallel import for_each
from fuse_tier.replicate.records import JobListing, JobRecords
from fuse_tier.tiers.bucket import BucketTier

log = structlog.get_logger(__name__)
T = TypeVar("T")

READ_AT_ONCE = 16


@dataclass(slots=True)
class _Turn:
    """One listing, and those who wait for it."""

    done: trio.Event = field(default_factory=trio.Event)
    listing: JobListing | None = None  # None when it was given up, or failed
    failure: FuseTierError | None = None


class Catalog:
    """Of one bucket. Every method raises TierUnavailable and TierRefused as the bucket does."""

    def __init__(self, bucket: BucketTier, records: JobRecords) -> None:
        self._bucket = bucket
        self._records = records
        self._next: dict[Job, _Turn] = {}
        self._listing: dict[Job, trio.Lock] = {}
        self._saved: dict[SnapshotId, Saved] = {}
        self._checkpoints: dict[tuple[Job, str], Checkpoint] = {}
        self._told: set[SnapshotId | tuple[Job, str]] = set()  # that it cannot be read

    async def listing(self, job: Job) -> JobListing:
        """What is listed of a job; the listing began after this was called."""
        while True:
            turn = self._next.get(job)
            if turn is None:
                return await self._list(job)
            await turn.done.wait()
            if turn.failure is not None:
                raise turn.failure
            if turn.listing is not None:
                return turn.listing

    async def _list(self, job: Job) -> JobListing:
        turn = self._next[job] = _Turn()
        try:
            async with self._listing.setdefault(job, trio.Lock()):
                del self._next[job]  # who asks from now on needs another one
                turn.listing = await self._records.listing(job)
                return turn.listing
        except FuseTierError as error:
            turn.failure = error
            raise
        finally:
            if self._next.get(job) is turn:  # cancelled before it began
                del self._next[job]
            turn.done.set()

    async def saved(self, listing: JobListing) -> dict[SnapshotId, Saved | None]:
        """What each snapshot is part of; None for one whose manifest cannot be read. Those gone meanwhile are left
        out.
        """
        found: dict[SnapshotId, Saved | None] = {}

        async def read(snapshot: SnapshotId) -> None:
            if snapshot not in self._saved:
                try:
                    self._saved[snapshot] = Saved.of(await self._bucket.manifest(snapshot))
                except NotFound:
                    return
                except Damaged as error:
                    if snapshot not in self._told:
                        self._told.add(snapshot)
                        log.warning("steward.manifest_unreadable", snapshot=str(snapshot), reason=str(error))
                    found[snapshot] = None
                    return
            found[snapshot] = self._saved[snapshot]

        await for_each(listing.snapshots, read, READ_AT_ONCE)
        gone = [one for one in self._saved if Job.of(one.identity) == listing.job and one not in found]
        for snapshot in gone:
            del self._saved[snapshot]
        return found

    async def checkpoints(self, listing: JobListing) -> dict[str, Checkpoint]:
        """The records that can be read, by name."""
        found: dict[str, Checkpoint] = {}

        async def read(name: str) -> None:
            key = (listing.job, name)
            try:
                if key not in self._checkpoints:
                    self._checkpoints[key] = await self._records.checkpoint(*key)
                found[name] = self._checkpoints[key]
            except NotFound:
                return
            except Damaged as error:
                if key not in self._told:
                    self._told.add(key)
                    log.warning("steward.record_unreadable", checkpoint=name, job=str(listing.job), reason=str(error))

        await for_each(listing.checkpoints, read, READ_AT_ONCE)
        for key in [key for key in self._checkpoints if key[0] == listing.job and key[1] not in found]:
            del self._checkpoints[key]
        return found
