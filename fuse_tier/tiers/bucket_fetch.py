"""Bringing blobs out of a bucket: which request brings which, and what came of each.

Two rounds. In the first, small blobs that are known to be in a pack come out of it, neighbours together, and all
others are asked for by name. What is not there then may be in a pack that we have not heard of, or not any more
in the pack that we knew: the second round looks again.
"""

from __future__ import annotations

from collections.abc import Callable

from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import NotFound, TierError, TierUnavailable
from fuse_tier.tiers.base import Fetched
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_packs import PACK_FROM, SMALL, Run, Spot, plan_runs
from fuse_tier.tiers.bucket_presence import Presence
from fuse_tier.tiers.bucket_transfer import Receiver, download_blob, download_run
from fuse_tier.tiers.bucket_work import Work


class Fetching:
    """One call of ``fetch`` or ``verify``."""

    def __init__(
        self,
        objects: Objects,
        work: Work,
        presence: Presence,
        receive: Callable[[Blob], Receiver],
        progress: Progress,
    ) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._receive = receive
        self._progress = progress
        self._outcome: dict[Blob, TierError | None] = {}
        self._gone_silent: TierUnavailable | None = None

    async def bring(self, wanted: set[Blob]) -> Fetched:
        """Brings what can be brought. Each blob's own failure is in the result; nothing else is raised."""
        small = {blob for blob in wanted if blob.size < SMALL}
        spots = self._presence.shelf.find(small)
        if len(small) - len(spots) >= PACK_FROM:
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
        items: list[Blob | Run] = [*sorted(single, key=lambda blob: -blob.size), *plan_runs(spots)]
        await self._work.each(items, self._bring_item)

    async def _bring_item(self, item: Blob | Run) -> None:
        concerned = [blob for blob, _ in item.members] if isinstance(item, Run) else [item]
        if self._gone_silent is not None:  # patience was shown once; it would add up
            self._outcome.update(dict.fromkeys(concerned, self._gone_silent))
            return
        try:
            self._outcome.update(await self._bring_blobs(item))
        except TierError as error:
            self._outcome.update(dict.fromkeys(concerned, error))
            if isinstance(error, TierUnavailable):
                self._gone_silent = error

    async def _bring_blobs(self, item: Blob | Run) -> dict[Blob, TierError | None]:
        if isinstance(item, Run):
            run = item
            return await self._work.run(
                lambda task: download_run(self._objects, run, self._receive, self._progress, task)
            )
        blob = item
        await self._work.run(lambda task: download_blob(self._objects, blob, self._receive, self._progress, task))
        return {blob: None}
