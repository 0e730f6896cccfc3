"""Bringing blobs out of a bucket: which request brings which, and what came of each.

Two rounds. In the first, small blobs that are known to be in a pack come out of it, neighbours together, and all
others are asked for by name. What is not there then may be in a pack that we have not heard of, or not any more
in the pack that we knew: the second round looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import Damaged, NotFound, TierError, TierUnavailable
from fuse_tier.tiers.base import Fetched
from fuse_tier.tiers.bucket_checksums import combined, crc32c_text
from fuse_tier.tiers.bucket_download import Downloads, Landing
from fuse_tier.tiers.bucket_layout import blob_object, pack_object
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_packs import PACK_FROM, SMALL, Run, Spot, plan_runs
from fuse_tier.tiers.bucket_parts import to_split
from fuse_tier.tiers.bucket_presence import Presence
from fuse_tier.tiers.bucket_receive import Destination, Receiver, unpack
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

RANGE: Final = 16 << 20  # bytes: what one request brings of a large blob


class Fetching:
    """One call of ``fetch`` or ``verify``. ``in_ranges``: large blobs by several requests at a time."""

    def __init__(
        self,
        objects: Objects,
        work: Work,
        presence: Presence,
        destination: Destination,
        progress: Progress,
        parallel: int,
        *,
        in_ranges: bool,
    ) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._destination = destination
        self._progress = progress
        self._downloads = Downloads(objects, work)
        self._parallel = parallel
        self._in_ranges = in_ranges
        self._split: set[Blob] = set()
        self._unpacking = trio.Lock()  # threads that make many brief system calls hold each other up
        self._outcome: dict[Blob, TierError | None] = {}
        self._gone_silent: TierUnavailable | None = None

    async def bring(self, wanted: set[Blob]) -> Fetched:
        """Brings what can be brought. Each blob's own failure is in the result; nothing else is raised."""
        small = {blob for blob in wanted if blob.size < SMALL}
        spots = self._presence.shelf.find(small)
        lacking = len(small) - len(spots)
        if lacking >= PACK_FROM or (lacking and self._presence.may_tell_of_packs):
            spots |= await self._look_for(small - spots.keys())
        await self._attempt(wanted - spots.keys() - self._outcome.keys(), spots)
        lost = {blob for blob in small if isinstance(self._outcome.get(blob), NotFound)}
        if lost:
            spots = await self._look_for(lost)
            await self._attempt(lost - spots.keys(), spots)
        return Fetched(
            arrived=frozenset(blob for blob, error in self._outcome.items() if error is None),
            failed={blob: error for blob, error in self._outcome.items() if error is not None},
        )

    async def _look_for(self, wanted: set[Blob]) -> dict[Blob, Spot]:
        try:
            return await self._presence.find_packed(wanted)
        except TierUnavailable as error:
            self._gone_silent = error
            return {}

    async def _attempt(self, single: set[Blob], spots: dict[Blob, Spot]) -> None:
        # The largest first, so that none of them is alone at the end.
        in_turn = sorted(single, key=lambda blob: -blob.size)
        self._split = to_split(in_turn, self._parallel) if self._in_ranges else set()
        items: list[Blob | Run] = [*in_turn, *plan_runs(spots)]
        await self._work.each(items, self._bring_item)

    async def _bring_item(self, item: Blob | Run) -> None:
        concerned = [blob for blob, _ in item.members] if isinstance(item, Run) else [item]
        if self._gone_silent is not None:  # patience was shown once; it would add up
            self._outcome.update(dict.fromkeys(concerned, self._gone_silent))
            return
        try:
            self._outcome.update(await (self._bring_run(item) if isinstance(item, Run) else self._bring_blob(item)))
        except TierError as error:
            self._outcome.update(dict.fromkeys(concerned, error))
            if isinstance(error, TierUnavailable):
                self._gone_silent = error

    async def _bring_blob(self, blob: Blob) -> dict[Blob, TierError | None]:
        try:
            await self._land(blob)
        except Damaged as error:  # it may have been changed on its way: real damage is found twice
            log.info("bucket.read_again", blob=blob.name, reason=str(error))
            await self._land(blob)
        return {blob: None}

    async def _land(self, blob: Blob) -> None:
        made: list[Receiver] = []  # what a thread makes is ours, though nobody may wait for it any more

        def accept(_: Task) -> None:
            made.pop().accept()

        step = RANGE if blob in self._split else max(1, blob.size)
        try:
            await self._work.run(lambda _: made.append(self._destination.open(blob)))
            landings = [
                Landing(start, min(start + step, blob.size), made[0].write, self._progress)
                for start in range(0, max(1, blob.size), step)
            ]
            await self._work.each(
                landings, lambda landing: self._downloads.bring(blob_object(blob), landing, blob.size)
            )
            check_checksum(blob, landings)
            await self._work.run(accept)
        finally:
            for receiver in made:
                receiver.discard()

    async def _bring_run(self, run: Run, *, is_last: bool = False) -> dict[Blob, TierError | None]:
        content = bytearray(run.length)

        def write(piece: memoryview, at: int) -> None:
            content[at - run.start : at - run.start + len(piece)] = piece

        landing = Landing(run.start, run.start + run.length, write)
        await self._downloads.bring(pack_object(run.pack), landing, run.pack.size)
        async with self._unpacking:
            outcome = await self._work.run(
                lambda task: unpack(memoryview(content), run, self._destination, self._progress, task)
            )
        hurt = {blob: Spot(run.pack, start) for blob, start in run.members if isinstance(outcome.get(blob), Damaged)}
        for again in plan_runs(hurt) if not is_last else ():  # as above
            outcome |= await self._bring_run(again, is_last=True)
        return outcome


def check_checksum(blob: Blob, landings: Sequence[Landing]) -> None:
    """Raises Damaged unless what landed has the checksum that the service has of the object."""
    found = 0
    for landing in landings:
        found = combined(found, landing.crc32c, landing.end - landing.start)
    for landing in landings:
        if landing.whole_crc32c not in (None, crc32c_text(found)):
            raise Damaged(
                f"{blob} has another checksum than the service says: it was changed on its way, or meanwhile"
            )
