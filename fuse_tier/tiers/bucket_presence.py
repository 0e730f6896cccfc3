"""What is in the bucket already: seen lately, looked for singly, listed, or found in packs.

Owns what this process remembers of the bucket, all of which it can find out again. Invariant: a blob that
``missing`` does not name was in the bucket within the last RELIANCE_SECONDS, and was then young enough that
nobody collects it for as long again (see ``bucket.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import structlog

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket_batch import AT_MOST, portions
from fuse_tier.tiers.bucket_listing import list_all
from fuse_tier.tiers.bucket_many import heads, mark_used
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_packs import SMALL, PackIndex, Shelf, Spot
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_transfer import read_index
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

RELIANCE_SECONDS: Final = 1500.0
_LIST_FROM: Final = AT_MOST  # unknown blobs; up to that many are asked for in one request
_LIST_AT_LEAST: Final = 1000  # objects: what one request lists
_LAST_NAME: Final = "\U0010ffff"  # after all
_SEARCHED_PACKS: Final = 256  # for content that may well be nowhere; the newest ones
_BATCH: Final = 32  # indexes read before we look whether that was enough
_REMEMBERED: Final = 200_000  # blobs seen, before those seen too long ago are forgotten


class Presence:
    """What this process knows to be in the bucket."""

    def __init__(self, objects: Objects, work: Work) -> None:
        self._objects = objects
        self._work = work
        self._seen: dict[Blob, float] = {}
        self._removals = 0
        self._unasked: set[str] = set()
        self._unchecked: dict[str, Stored] = {}
        self.shelf = Shelf()

    @property
    def epoch(self) -> int:
        """To be handed to ``note``: what was seen before something was removed is not believed after it."""
        return self._removals

    def note(self, blobs: Iterable[Blob], epoch: int, seen: float) -> None:
        """Remembers that these were there at a time (``time.monotonic``) and will stay for RELIANCE_SECONDS."""
        if epoch == self._removals:
            self._seen.update(dict.fromkeys(blobs, seen))
        if len(self._seen) > _REMEMBERED:
            oldest = time.monotonic() - RELIANCE_SECONDS
            self._seen = {blob: at for blob, at in self._seen.items() if at > oldest}

    def forget(self, blobs: Iterable[Blob]) -> None:
        """These are about to be removed."""
        self._removals += 1
        for blob in blobs:
            self._seen.pop(blob, None)

    def known(self, blobs: Iterable[Blob]) -> set[Blob]:
        """Which of these were there when somebody looked last, or were uploaded."""
        return {blob for blob in blobs if blob in self._seen}

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """Which of these are not in the bucket, or only in a pack that few would look for."""
        started, epoch = time.monotonic(), self.epoch
        oldest = started - RELIANCE_SECONDS
        unknown = {blob for blob in blobs if self._seen.get(blob, -math.inf) < oldest}
        if not unknown:
            return set()
        found = await self._find_single(unknown)
        small = {blob for blob in unknown - found if blob.size < SMALL}
        if small:
            found |= await self._rely_on_packs(small)
        self.note(found, epoch, started)
        return unknown - found

    def take_unchecked(self, name: str) -> Stored | None:
        """An object that was found and that nobody may rely on, because whoever sent it had not compared it."""
        return self._unchecked.pop(name, None)

    def ask_for_packs(self, manifest: str) -> None:
        """Somebody has read the manifest that is this object, and may want its small contents."""
        self._unasked.add(manifest)

    @property
    def may_tell_of_packs(self) -> bool:
        """Whether manifests were read that may say where their small contents are."""
        return bool(self._unasked)

    async def find_packed(self, wanted: Collection[Blob]) -> dict[Blob, Spot]:
        """Where in packs these are, as far as they are: looks where manifests that were read say, and then
        everywhere, reading indexes, newest first, until all were found.
        """
        manifests, self._unasked = list(self._unasked)[:AT_MOST], set()
        if manifests:
            found = await self._work.run(lambda task: heads(self._objects, manifests, task))
            packs = {pack for stored in found.values() for pack in stored.packs if pack not in self.shelf}
            await self._work.each(packs, self._read_index)
            spots = self.shelf.find(wanted)
            if len(spots) == len(set(wanted)):
                return spots
        spots, _ = await self._search(wanted, None)
        return spots

    async def _read_index(self, pack: Blob) -> None:
        await self.index_of(pack)

    async def index_of(self, pack: Blob) -> PackIndex | None:
        """What a pack holds; None if it is gone, or cannot be read, which is logged."""
        try:
            index = await self._work.run(lambda task: read_index(self._objects, pack, task))
        except NotFound:
            return None
        except Damaged as error:
            log.warning("bucket.pack.unreadable", pack=pack.name, error=str(error))
            return None
        self.shelf.add(index)
        return index

    async def _find_single(self, unknown: set[Blob]) -> set[Blob]:
        found: dict[Blob, Stored] = {}
        rest = sorted(unknown, key=layout.blob_object)
        if len(unknown) > _LIST_FROM:
            found, end = await self._work.run(lambda task: task.retry(lambda: self._list_blobs(unknown, task)))
            rest = [blob for blob in rest if layout.blob_object(blob) > end]

        async def look(portion: Sequence[Blob]) -> None:
            by_name = {layout.blob_object(blob): blob for blob in portion}
            stored = await self._work.run(lambda task: heads(self._objects, by_name, task))
            found.update({by_name[name]: one for name, one in stored.items() if one.size == by_name[name].size})

        await self._work.each(portions(rest, AT_MOST), look)
        self._unchecked = {stored.name: stored for stored in found.values() if not stored.is_checked}
        return await self._rely_on({blob: stored for blob, stored in found.items() if stored.is_checked})

    async def _rely_on_packs(self, wanted: set[Blob]) -> set[Blob]:
        spots, packs = await self._search(wanted, _SEARCHED_PACKS)
        needed = {spot.pack: packs[spot.pack] for spot in spots.values() if packs[spot.pack].is_checked}
        kept = await self._rely_on(needed)
        return {blob for blob, spot in spots.items() if spot.pack in kept}

    async def _rely_on(self, found: dict[Blob, Stored]) -> set[Blob]:
        """Makes what is old young again; gives what is there then."""
        kept = set(found)
        oldest = self._objects.now() - RELIANCE_SECONDS

        old = [(blob, stored) for blob, stored in found.items() if stored.used < oldest]

        async def mark(portion: Sequence[tuple[Blob, Stored]]) -> None:
            objects = [stored for _, stored in portion]
            marked = await self._work.run(lambda task: mark_used(self._objects, objects, task))
            kept.difference_update(blob for (blob, _), there in zip(portion, marked, strict=True) if not there)

        await self._work.each(portions(old, AT_MOST), mark)
        return kept

    async def _search(
        self, wanted: Collection[Blob], at_most: int | None
    ) -> tuple[dict[Blob, Spot], dict[Blob, Stored]]:
        packs = await self._work.run(self._list_packs)
        self.shelf.keep_only(packs)
        spots = self.shelf.find(wanted)
        unread = sorted((pack for pack in packs if pack not in self.shelf), key=lambda pack: -packs[pack].created)
        unread = unread[:at_most]
        while unread and len(spots) < len(set(wanted)):
            batch, unread = unread[:_BATCH], unread[_BATCH:]

            async def read(pack: Blob) -> None:
                if index := await self.index_of(pack):
                    spots.update(index.find(wanted))

            await self._work.each(batch, read)
        return spots, packs

    def _list_blobs(self, wanted: set[Blob], task: Task) -> tuple[dict[Blob, Stored], str]:
        """Those of these that are among the first objects, and the name up to which it looked; a large bucket has
        more than it pays to list.
        """
        found, end = {}, _LAST_NAME
        at_most = max(_LIST_AT_LEAST, len(wanted))
        for count, stored in enumerate(self._objects.listed(layout.BLOBS, task.stop, at_most), 1):
            if count == at_most:
                end = stored.name
            blob = layout.blob_of(stored.name)
            if blob is not None and blob in wanted and stored.size == blob.size:
                found[blob] = stored
        return found, end

    def _list_packs(self, task: Task) -> dict[Blob, Stored]:
        listed = ((layout.pack_of(stored.name), stored) for stored in list_all(self._objects, layout.PACKS, task))
        return {pack: stored for pack, stored in listed if pack is not None and pack.size == stored.size}
