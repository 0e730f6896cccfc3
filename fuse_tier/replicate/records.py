"""What a bucket records of jobs: the checkpoints that are complete, which one to restore, and who restores now.

Owns the names and the meaning of the documents of a job (docs/bucket-layout.md); which snapshots are a checkpoint is
decided in completeness.py. The invariant: a record is written after every manifest that it names was seen, once, and
it goes before they do.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import trio

from fuse_tier.checkpoints import Checkpoint, Job, decode, encode, is_checkpoint_name
from fuse_tier.errors import Damaged, FuseTierError, MalformedManifest, NotFound, TierUnavailable
from fuse_tier.identity import SnapshotId, is_name
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_documents import Document
from fuse_tier.tiers.bucket_many import Removal

log = structlog.get_logger(__name__)
T = TypeVar("T")

USE_SECONDS: Final = 1800.0  # for so long after somebody said that it is in use, nobody drops a snapshot
_SAY_EVERY_SECONDS: Final = USE_SECONDS / 3
_END: Final = ".json"
_VERSION: Final = "restore.version"
_USE: Final = re.compile(r"in-use/(?P<replica>[^/]+)/(?P<number>[1-9][0-9]{0,18})-[0-9a-f]{16}")
_LONGEST_VERSION: Final = 4096  # bytes; a person writes it, with any editor


@dataclass(frozen=True, slots=True)
class JobListing:
    """What a bucket lists of one job at one moment."""

    job: Job
    snapshots: Mapping[SnapshotId, float]  # and when each was committed, seconds since 1970 by the service's clock
    checkpoints: tuple[str, ...] = ()  # names, which sort as their dates do, oldest first
    in_use: frozenset[SnapshotId] = frozenset()  # being restored
    forced: str | None = None  # what ``restore.version`` says, if it is there; whether it is a name is not looked at
    forced_by: Document | None = None
    old_uses: tuple[str, ...] = ()  # documents of restores that ended without saying so

    def ends_forced(self, checkpoint: Checkpoint) -> bool:
        """Whether all of a checkpoint came after ``restore.version`` was written, which then counts no longer."""
        written = self.forced_by
        return written is not None and all(self.snapshots.get(one, 0.0) > written.created for one in checkpoint.ids)


@dataclass(frozen=True, slots=True)
class InBucket:
    """What a bucket lists of one volume. ``forced`` is the snapshot that a version names; 0: none was named."""

    numbers: tuple[int, ...] = ()
    forced: int = 0
    version: str = ""


class JobRecords:
    """The records in one bucket. Every method raises TierUnavailable and TierRefused as the bucket does."""

    def __init__(self, bucket: BucketTier) -> None:
        self._bucket = bucket

    async def every(self) -> tuple[Job, ...]:
        """All jobs that have a snapshot there, in order."""
        return tuple(sorted({Job.of(snapshot.identity) for snapshot in await self._bucket.snapshots()}))

    async def listing(self, job: Job) -> JobListing:
        """What is listed of a job: two requests, for as many as a page has; one more when a version is forced."""
        # Records first: what a record names is listed after it, unless it was dropped, record first.
        documents = await self._bucket.documents.listed(f"{job}/")
        snapshots = await self._bucket.snapshots_of(job)
        oldest = self._bucket.now() - USE_SECONDS
        own = {document.name.removeprefix(f"{job}/"): document for document in documents}
        uses = [(used, document) for name, document in own.items() if (used := _use_of(job, name)) is not None]
        names = (name.removesuffix(_END) for name in own if name.endswith(_END))
        return JobListing(
            job,
            snapshots,
            tuple(sorted(name for name in names if is_checkpoint_name(name))),
            frozenset(used for used, document in uses if document.created >= oldest),
            await self._forced(job) if _VERSION in own else None,
            own.get(_VERSION),
            tuple(document.name for _, document in uses if document.created < oldest),
        )

    async def restoring(self) -> frozenset[SnapshotId]:
        """What is being restored now, of all jobs."""
        oldest = self._bucket.now() - USE_SECONDS
        found: set[SnapshotId] = set()
        for document in await self._bucket.documents.listed():
            names = document.name.split("/", 2)
            if document.created >= oldest and len(names) == 3 and is_name(names[0]) and is_name(names[1]):
                used = _use_of(Job(names[0], names[1]), names[2])
                found |= {used} if used is not None else set()
        return frozenset(found)

    async def _forced(self, job: Job) -> str | None:
        try:
            text = await self._bucket.documents.read(f"{job}/{_VERSION}")
        except NotFound:  # removed since it was listed
            return None
        return text[:_LONGEST_VERSION].decode(errors="replace").strip()

    async def forced_checkpoint(self, job: Job, version: str) -> Checkpoint:
        """The record that ``restore.version`` names. Raises NotFound, MalformedManifest, telling how to mend it."""
        what = f"{_VERSION} of {job} in {self._bucket.place} says {version[:40]!r}"
        if not is_checkpoint_name(version):
            raise MalformedManifest(
                f"{what}, which names no checkpoint: write a date as stand beside it, or delete it"
            )
        try:
            return await self.checkpoint(job, version)
        except NotFound:
            raise NotFound(f"{what}, and there is no such checkpoint: name one beside it, or delete it") from None

    async def checkpoint(self, job: Job, name: str) -> Checkpoint:
        """A record. Raises NotFound, MalformedManifest."""
        what = f"checkpoint {name} of {job} in {self._bucket.place}"
        if not is_checkpoint_name(name):
            raise NotFound(f"{name[:40]!r} names no checkpoint: they are called as 2026-01-31_08-30 is")
        try:
            found = decode(await self._bucket.documents.read(f"{job}/{name}{_END}"))
        except NotFound:
            raise NotFound(f"there is no {what}: `gcloud storage ls` of its place shows which there are") from None
        except Damaged as error:
            raise MalformedManifest(f"{what}: {error}") from error
        if found.job != job or name not in found.names:
            raise MalformedManifest(f"{what} is the record of {found.names[0]} of {found.job}")
        return found

    async def record(self, checkpoint: Checkpoint, after: str = "") -> str:
        """Says that a checkpoint is complete; gives its name. The caller has seen its snapshots there.

        ``after`` is the name of the newest one: names sort as the checkpoints came, also when an earlier one of the
        same minute was dropped and its name is free again.

        Repeated, or done by several at once, it leaves one record. Another checkpoint of the same minute has its
        seconds in its name.
        """
        text = encode(checkpoint)
        for name in checkpoint.names:
            if name > after and await self._bucket.documents.create(f"{checkpoint.job}/{name}{_END}", text):
                return name
        raise TierUnavailable(
            f"{self._bucket.place} has other checkpoints of {checkpoint.job} under every name of this one"
        )

    async def drop(self, job: Job, names: Collection[str]) -> Removal:
        """Takes records away; their snapshots stay. One that is not there is no error."""
        return await self._bucket.documents.remove([f"{job}/{name}{_END}" for name in names])

    async def end_forced(self, listing: JobListing) -> bool:
        """Removes ``restore.version``, which counts no longer; False if it has gone, is another one by now, or has to
        stay.
        """
        written = listing.forced_by
        return written is not None and bool((await self._bucket.documents.remove_listed(written)).removed)

    async def forget_uses(self, listing: JobListing) -> None:
        """Removes what restores left that ended without saying so."""
        if listing.old_uses:
            await self._bucket.documents.remove(listing.old_uses)

    async def while_using(self, snapshot: SnapshotId, work: Callable[[], Awaitable[T]]) -> T:
        """Does work, and what it raises is raised here; until its end nobody drops the snapshot, in any cluster.

        Who may only read the bucket cannot say so, and works without: that is logged.
        """
        outcome: list[T] = []
        failure: list[Exception] = []
        said: list[str] = []
        async with trio.open_nursery() as nursery:
            await self._say_in_use(snapshot, said)
            nursery.start_soon(self._keep_saying, snapshot, said)
            try:
                outcome.append(await work())
            except Exception as error:  # noqa: BLE001 - raised below, in no group
                failure.append(error)
            nursery.cancel_scope.cancel()
        if said:
            try:
                await self._bucket.documents.remove(said)
            except FuseTierError as error:
                log.info("records.use_not_ended", snapshot=str(snapshot), reason=str(error))
        if failure:
            raise failure[0]
        return outcome[0]

    async def _keep_saying(self, snapshot: SnapshotId, said: list[str]) -> None:
        while True:
            await trio.sleep(_SAY_EVERY_SECONDS)
            await self._say_in_use(snapshot, said)

    async def _say_in_use(self, snapshot: SnapshotId, said: list[str]) -> None:
        job, replica = Job.of(snapshot.identity), snapshot.identity.replica
        name = f"{job}/in-use/{replica}/{snapshot.number}-{secrets.token_hex(8)}"
        try:
            await self._bucket.documents.create(name, b"")
            said.append(name)
        except FuseTierError as error:
            log.info("records.use_not_said", snapshot=str(snapshot), reason=str(error))


def _use_of(job: Job, name: str) -> SnapshotId | None:
    match = _USE.fullmatch(name)
    if match is None or not is_name(match["replica"]) or int(match["number"]) >= 1 << 63:
        return None
    return SnapshotId(job.identity(match["replica"]), int(match["number"]))
