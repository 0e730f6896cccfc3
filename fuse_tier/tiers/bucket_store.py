"""Bringing blobs into a bucket: which requests bring which, in which order, and which of several nodes makes them.

Small blobs go in packs when there are many, large ones in parts when they would be on their way alone, all others in
one request each. What takes long enough is claimed first: what another node has claimed is waited for, and uploaded
here after all if that node gives it up. A request that breaks costs at most a part of what it carried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
import trio
import xxhash

from fuse_tier.blobs import Blob, Progress, Source
from fuse_tier.errors import TierError, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.bucket_checks import Checks
from fuse_tier.tiers.bucket_claims import CLAIM_FROM, Claims
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_layout import blob_object, pack_object
from fuse_tier.tiers.bucket_many import heads
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_packs import INDEX_BYTES, PACK_FROM, SMALL, PackIndex, divide, make_pack
from fuse_tier.tiers.bucket_parts import PART, PartsUpload, to_split
from fuse_tier.tiers.bucket_presence import RELIANCE_SECONDS, Presence
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_upload import Told, upload_blob, upload_pack
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS: Final = RELIANCE_SECONDS / 3
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0

IN_PARTS_AFTER: Final = 2 * PART  # bytes: content of that size goes on in parts when a request with it breaks

Send = Callable[[], Awaitable[None]]
Item = Blob | tuple[Blob, ...]
"""A blob, or those of a pack."""


class Storing:
    """One call of ``store``."""

    def __init__(
        self,
        objects: Objects,
        work: Work,
        presence: Presence,
        parts: PartsUpload,
        claims: Claims,
        parallel: int,
        source: Source,
        progress: Progress,
    ) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._parts = parts
        self._parallel = parallel
        self._source = source
        self._progress = progress
        self._claims = claims
        self._checks = Checks(objects, work, presence)
        self._taken: list[Stored] = []
        self._split: set[Blob] = set()
        self._elsewhere: dict[Blob, Item] = {}  # what others upload, by the object that it will be
        self._order = random.Random()  # noqa: S311 - spreads work, guards nothing

    async def store(self, blobs: Collection[Blob]) -> None:
        """Returns when all are there. Raises what the source raises, Damaged, TierUnavailable, TierRefused."""
        absent = await self._presence.missing(blobs)
        if not absent:
            return
        small = {blob for blob in absent if blob.size < SMALL}
        packed = small if len(small) >= PACK_FROM else set()
        single = absent - packed
        self._split = to_split(sorted(single), self._parallel)
        items: list[Item] = [*self._in_turn(single), *divide(packed)]
        background: list[Send] = [
            partial(self._keep_young, absent),
            partial(self._claims.renew, self._taken),
            self._checks.keep_settling,
        ]
        await self._work.beside(background, partial(self._store_all, items))

    async def _store_all(self, items: Sequence[Item]) -> None:
        try:
            await self._work.each(items, self._store_item)
            await self._checks.settle()  # others may be waiting for it, as we for theirs
            await self._wait_for_others()
            await self._checks.settle()
        finally:
            if self._taken:
                await self._claims.release(self._taken)

    def _in_turn(self, blobs: Collection[Blob]) -> list[Blob]:
        """The largest first, so that none of them is alone at the end; those of about one size in an order of our
        own, so that nodes that have the same do not meet at each.
        """
        salt = self._order.getrandbits(64)
        return sorted(blobs, key=lambda blob: (-blob.size.bit_length(), xxhash.xxh3_64_intdigest(blob.digest, salt)))

    async def _keep_young(self, blobs: Collection[Blob]) -> None:
        """What arrived early must not be taken for garbage before the last has arrived."""
        while True:
            await trio.sleep(_LOOK_AGAIN_SECONDS)
            try:
                await self._presence.missing(self._presence.known(blobs))
            except TierError as error:  # then ``commit`` finds what is lacking
                log.info("bucket.not_renewed", reason=str(error))

    async def _store_item(self, item: Item) -> None:
        if isinstance(item, Blob):
            await self._claimed(item, item, partial(self._upload_blob, item))
            return
        content = await self._work.run(lambda _: MemoryContent(make_pack(item, self._source)))
        await self._claimed(hash_bytes(content.content), item, partial(self._upload_pack, item, content))

    async def _claimed(self, content: Blob, item: Item, send: Send) -> None:
        """Uploads content, unless somebody else does, which is noted."""
        is_brief = content.size < (CLAIM_FROM if isinstance(item, Blob) else SMALL)  # packs are few
        if is_brief or not self._claims.is_claimable(content):
            await send()
            return
        claim = await self._claims.take(content)
        if claim is None:
            self._elsewhere[content] = item
            return
        self._taken.append(claim)
        if await self._arrived({content: item}):  # somebody else has just given the claim up
            await self._note_arrival(content, item)
        else:
            await send()

    async def _wait_for_others(self) -> None:
        pause = _FIRST_PAUSE
        while waiting := len(self._elsewhere):
            # In this order: who has uploaded something gives up the claim afterwards.
            free = set(await self._claims.open_to_us(list(self._elsewhere)))
            there = await self._arrived(self._elsewhere)
            items = [self._elsewhere.pop(content) for content in free - there]
            for content in there:
                await self._note_arrival(content, self._elsewhere.pop(content))
            await self._work.each(items, self._store_item)
            pause = _FIRST_PAUSE if len(self._elsewhere) < waiting else min(2 * pause, _LONGEST_PAUSE)
            if self._elsewhere:
                await trio.sleep(self._order.uniform(pause / 2, pause))

    async def _arrived(self, wanted: Mapping[Blob, Item]) -> set[Blob]:
        """Which contents are there, as the objects that they will be."""
        names = {
            blob_object(content) if content == item else pack_object(content): content
            for content, item in wanted.items()
        }
        found = await self._work.run(lambda task: heads(self._objects, names, task))
        return {
            names[name] for name, stored in found.items() if stored.is_checked and stored.size == names[name].size
        }

    async def _note_arrival(self, content: Blob, item: Item) -> None:
        log.debug("bucket.uploaded_elsewhere", content=content.name)
        if isinstance(item, Blob):
            self._presence.note([item], self._presence.epoch, time.monotonic())
        elif await self._presence.index_of(content) is not None:
            self._presence.note(item, self._presence.epoch, time.monotonic())

    async def _upload_blob(self, blob: Blob) -> None:
        epoch, told = self._presence.epoch, Told(self._progress)
        unchecked = self._presence.take_unchecked(blob_object(blob))

        def send(task: Task) -> Stored:
            return upload_blob(self._objects, blob, self._source, told, task, unchecked)

        if blob in self._split and unchecked is None:
            stored = await self._parts.upload(blob, self._source, told)
        elif blob.size < IN_PARTS_AFTER:
            stored = await self._work.run(send)
        else:
            try:
                stored = await self._work.run(send, patience=0)
            except TierUnavailable as error:
                log.info("bucket.upload_broke", blob=blob.name, reason=str(error))
                stored = await self._parts.upload(blob, self._source, told)
        await self._checks.passed(stored, [blob], epoch)

    async def _upload_pack(self, members: tuple[Blob, ...], content: MemoryContent) -> None:
        epoch, pack = self._presence.epoch, hash_bytes(content.content)
        stored = await self._work.run(lambda task: upload_pack(self._objects, pack_object(pack), content, task))
        self._progress(sum(blob.size for blob in members))
        self._presence.shelf.add(PackIndex.parse(pack, content.content[-INDEX_BYTES:]))
        await self._checks.passed(stored, members, epoch)
