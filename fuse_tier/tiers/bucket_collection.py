"""Removing what no manifest names any more. Why that is safe beside writers is argued in ``bucket.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import MalformedManifest, NotFound
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import MAX_ENCODED_BYTES, decode
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_presence import Presence
from fuse_tier.tiers.bucket_transfer import Task, read_whole
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

_FOLDERS: Final = (layout.BLOBS, layout.PACKS)


def list_snapshots(objects: Objects, folder: str, task: Task) -> list[SnapshotId]:
    """The snapshots whose manifests are in a folder, in order."""
    listed = (layout.snapshot_of(stored.name) for stored in objects.listed(folder, task.stop))
    return sorted(snapshot for snapshot in listed if snapshot is not None)


class Collection:
    """One call of ``collect``. ``turn`` keeps commits of this process out while something is removed."""

    def __init__(self, objects: Objects, work: Work, presence: Presence, turn: trio.Lock) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._turn = turn
        self._named: set[Blob] = set()
        self._read: set[SnapshotId] = set()
        self._freed = 0

    async def collect(self, grace_seconds: float) -> int:
        """Gives the bytes freed. Raises MalformedManifest, and removes nothing, when a manifest cannot be read."""
        old = await self._work.run(lambda task: task.retry(lambda: self._list_old(grace_seconds, task)))
        if not old:
            return 0
        await self._read_manifests()
        async with self._turn:
            await self._read_manifests()  # those that came meanwhile
            await self._work.each(old, self._remove_unless_named)
        return self._freed

    def _list_old(self, grace_seconds: float, task: Task) -> list[Stored]:
        listed = (stored for folder in _FOLDERS for stored in self._objects.listed(folder, task.stop))
        return [
            stored
            for stored in listed
            if self._objects.now() - stored.used >= grace_seconds
            and (layout.blob_of(stored.name) or layout.pack_of(stored.name))
        ]

    async def _read_manifests(self) -> None:
        def listed(task: Task) -> list[SnapshotId]:
            return task.retry(lambda: list_snapshots(self._objects, layout.MANIFESTS, task))

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
                f"nothing is collected, because what {snapshot} names cannot be read ({error}): drop that snapshot"
            ) from error
        self._read.add(snapshot)

    async def _remove_unless_named(self, stored: Stored) -> None:
        blob = layout.blob_of(stored.name)
        held: Iterable[Blob] = [blob] if blob else await self._held_by(stored)
        held = tuple(held)
        if not held or not self._named.isdisjoint(held):
            return
        self._presence.forget(held)
        if await self._work.run(
            lambda task: task.retry(lambda: self._objects.delete(stored, only_unused=True)),
        ):
            self._freed += stored.size

    async def _held_by(self, stored: Stored) -> tuple[Blob, ...]:
        """What a pack holds; nothing if that cannot be read: such a pack stays."""
        pack = layout.pack_of(stored.name)
        index = await self._presence.index_of(pack) if pack and pack.size == stored.size else None
        return tuple(index.blobs) if index else ()
