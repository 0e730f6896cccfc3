"""Uploads that nobody may rely on yet: what arrived was compared by us alone, and the bucket does not tell so.

The checksum of what is streamed is known when all of it has gone, so the service cannot compare it; emulators never
do. Between its answer and our look at it this process may die, and would leave an object under a name that it may
not deserve. So such an object says of itself that it is unchecked until it was marked, many by one request. The
invariant: no manifest names, and nobody counts on, what is not marked; whoever finds such an object compares it with
content of its own, and marks or replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import TierError, TierUnavailable
from fuse_tier.tiers.bucket_batch import AT_MOST
from fuse_tier.tiers.bucket_many import mark_checked
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_presence import Presence
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

_MARK_SECONDS: Final = 5.0  # what a process that dies has sent in that time is read once more by the next


@dataclass(frozen=True, slots=True)
class _Unmarked:
    stored: Stored
    blobs: Collection[Blob]
    epoch: int  # of the presence, when its upload began


class Checks:
    """What one call of ``store`` has uploaded and compared."""

    def __init__(self, objects: Objects, work: Work, presence: Presence) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._unmarked: list[_Unmarked] = []
        self._settling = trio.Lock()

    async def passed(self, stored: Stored, blobs: Collection[Blob], epoch: int) -> None:
        """An object has what it should have, and holds these. Raises TierUnavailable, TierRefused."""
        if stored.is_checked:
            self._presence.note(blobs, epoch, time.monotonic())
            return
        self._unmarked.append(_Unmarked(stored, blobs, epoch))
        if len(self._unmarked) >= AT_MOST:
            await self.settle()

    async def settle(self) -> None:
        """Marks all that has passed. Raises TierUnavailable, TierRefused; a later call goes on then."""
        async with self._settling:  # who comes second must not return before the first is through
            while portion := self._unmarked[:AT_MOST]:
                await self._mark(portion)
                del self._unmarked[: len(portion)]

    async def keep_settling(self) -> None:
        """Does so now and then, until cancelled."""
        while True:
            await trio.sleep(_MARK_SECONDS)
            try:
                await self.settle()
            except TierError as error:  # whoever settles in the end tells it
                log.info("bucket.checks_not_marked", reason=str(error))

    async def _mark(self, portion: Sequence[_Unmarked]) -> None:
        seen = time.monotonic()
        wanted = [one.stored for one in portion]
        marked = await self._work.run(partial(mark_checked, self._objects, wanted))
        for one, is_there in zip(portion, marked, strict=True):
            if not is_there:
                raise TierUnavailable(f"{one.stored.name} was removed by others: it must be sent again")
            self._presence.note(one.blobs, one.epoch, seen)
