"""Removing what no manifest names any more. Why that is safe beside writers is argued in ``bucket.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence, Set
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import MalformedManifest, NotFound
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import MAX_ENCODED_BYTES, decode
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket_batch import AT_MOST, portions
from fuse_tier.tiers.bucket_listing import list_all
from fuse_tier.tiers.bucket_many import Removable, Removal, remove
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_presence import Presence
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_transfer import read_whole
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

Restoring = Callable[[], Awaitable[Collection[SnapshotId]]]
"""Asks which snapshots are being restored."""

# Claims last: an upload in parts has one from before its first part until it has its name.
_FOLDERS: Final = (layout.BLOBS, layout.PACKS, layout.PARTS, layout.CLAIMS)


def list_snapshots(objects: Objects, folder: str, task: Task) -> list[SnapshotId]:
    """The snapshots whose manifests are in a folder, in order."""
    listed = (layout.snapshot_of(stored.name) for stored in list_all(objects, folder, task))
    return sorted(snapshot for snapshot in listed if snapshot is not None)


@dataclass(frozen=True, slots=True)
class Found:
    """An object of ours, and the contents for which it is there; none for what is there for no content."""

    stored: Stored
    holds: frozenset[Blob]


def garbage(found: Collection[Found], named: Set[Blob], now: float, grace_seconds: float) -> tuple[Stored, ...]:
    """What may go: what holds nothing that is named, and was not written or relied upon for the grace."""
    return tuple(one.stored for one in found if now - one.stored.used >= grace_seconds and not one.holds & named)


class Collecting:
    """One call of ``collect``. ``turn`` keeps commits of this process out while something is removed."""

    def __init__(
        self, objects: Objects, work: Work, presence: Presence, turn: trio.Lock, restoring: Restoring
    ) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._turn = turn
        self._restoring = restoring
        self._named: set[Blob] = set()
        self._read: set[SnapshotId] = set()
        self._removal = Removal()

    async def collect(self, grace_seconds: float, *, dry_run: bool = False) -> Removal:
        """Tells what was removed, or (``dry_run``) would be.

        Raises MalformedManifest, and removes nothing, when what a manifest names cannot be read.
        """
        old = await self._work.run(lambda task: self._list_old(grace_seconds, task))
        if not old:
            return Removal()
        await self._read_manifests()
        found = await self._found(old)
        async with self._turn:
            await self._read_manifests()  # those that came meanwhile
            # Asked last: a restore says so first, and then reads its manifest. One that still found it before it
            # was dropped is known by now, and what it needs is not known any more.
            if dropped := set(await self._restoring()) - self._read:
                log.info("bucket.collection_postponed", restoring=sorted(map(str, dropped)))
                return Removal()
            going = garbage(found, self._named, self._objects.now(), grace_seconds)
            if dry_run:
                return Removal(tuple(stored.name for stored in going), sum(stored.size for stored in going))
            gone = {stored.name for stored in going}
            self._presence.forget({blob for one in found if one.stored.name in gone for blob in one.holds})
            await self._work.each(portions(going, AT_MOST), self._remove)
        return self._removal

    def _list_old(self, grace_seconds: float, task: Task) -> list[Stored]:
        old: list[Stored] = []
        uploading: set[str] = set()
        for folder in _FOLDERS:
            for stored in list_all(self._objects, folder, task):
                if not layout.is_collectable(stored.name):
                    continue
                if self._objects.now() - stored.used >= grace_seconds:
                    old.append(stored)
                elif folder == layout.CLAIMS:
                    uploading.add(stored.name.removeprefix(layout.CLAIMS))
        return [stored for stored in old if layout.whole_of_part(stored.name) not in uploading]

    async def _found(self, old: list[Stored]) -> list[Found]:
        found: list[Found] = []

        async def look(stored: Stored) -> None:
            if pack := layout.pack_of(stored.name):
                # One that cannot be read stays: nobody knows what is in it.
                index = await self._presence.index_of(pack) if pack.size == stored.size else None
                if index is not None:
                    found.append(Found(stored, frozenset(index.blobs)))
                return
            blob = layout.blob_of(stored.name)
            found.append(Found(stored, frozenset([blob] if blob else [])))

        await self._work.each(old, look)
        return found

    async def _read_manifests(self) -> None:
        def listed(task: Task) -> list[SnapshotId]:
            return list_snapshots(self._objects, layout.MANIFESTS, task)

        found = [snapshot for snapshot in await self._work.run(listed) if snapshot not in self._read]
        await self._work.each(found, self._read_manifest)

    async def _read_manifest(self, snapshot: SnapshotId) -> None:
        def read(task: Task) -> frozenset[Blob]:
            text = read_whole(self._objects, layout.manifest_object(snapshot), MAX_ENCODED_BYTES, task)
            return decode(text).blobs

        try:
            self._named |= await self._work.run(read)
        except NotFound:  # dropped since it was listed
            return
        except MalformedManifest as error:
            raise MalformedManifest(
                f"nothing is collected, because what {snapshot} names cannot be read ({error}); if nobody needs it, "
                f"delete the object {layout.manifest_object(snapshot)}"
            ) from error
        self._read.add(snapshot)

    async def _remove(self, portion: Sequence[Stored]) -> None:
        wanted = [Removable(one.name, one.size, one.generation, one.metageneration) for one in portion]
        self._removal += await self._work.run(lambda task: remove(self._objects, wanted, task))
