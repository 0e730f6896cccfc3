"""Bringing content from several places at once.

The nearest first: what all places of one rank cannot give is asked of the next. Within a rank every place takes from
one heap of what is wanted, a limited part at a time, so that the faster gives more, and one that dies in the middle
costs only the part that it had taken: another takes it. Decides nothing about who is asked, and trusts the places'
tiers to verify what they bring.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound, TierError
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.tiers.base import Fetched, Tier, TierName

log = structlog.get_logger(__name__)

_PART_BYTES = 64 << 20
_PART_BLOBS = 512
_PARTS_AT_ONCE = 2  # of one peer: while one ends the other begins

FetchFrom = Callable[[Tier, Collection[Blob]], Awaitable[Fetched]]
"""Has a place bring blobs to where they are wanted. Raises TierError when nothing can be said of any."""


@dataclass(slots=True)
class Gathered:
    """What came of it."""

    sources: dict[str, int] = field(default_factory=dict)  # place -> bytes that it gave
    failed: dict[Blob, TierError] = field(default_factory=dict)  # what nobody could give, and why


async def gather(
    what: object, blobs: Collection[Blob], ranks: Sequence[Sequence[Tier]], fetch: FetchFrom
) -> Gathered:
    """Brings blobs from the places of each rank in turn. ``what`` is named in the log. Never raises TierError."""
    gathered = Gathered()
    wanted = frozenset(blobs)
    for places in ranks:
        if wanted:
            heap = _Heap(what, wanted, gathered, fetch)
            async with trio.open_nursery() as nursery:
                for place in places:
                    for _ in range(_PARTS_AT_ONCE if place.name is TierName.PEER else 1):
                        nursery.start_soon(heap.take_from, place)
            wanted = frozenset(heap.wanted)
    gathered.failed = {blob: gathered.failed.get(blob, NotFound(f"no place has {blob}")) for blob in wanted}
    return gathered


class _Heap:
    """What is wanted of the places of one rank."""

    def __init__(self, what: object, wanted: Collection[Blob], gathered: Gathered, fetch: FetchFrom) -> None:
        self.wanted = set(wanted)
        self._what = what
        self._gathered = gathered
        self._fetch = fetch
        self._free = sorted(wanted, key=lambda blob: (blob.size, blob.digest))  # taken from the end: large ones first
        self._asked: dict[str, set[Blob]] = {}  # by place
        self._failed: set[str] = set()
        self._under_way = 0
        self._changed = Broadcast()

    async def take_from(self, place: Tier) -> None:
        """Has a place bring parts until nothing is left that it might have, or it fails."""
        asked = self._asked.setdefault(place.place, set())
        while True:
            version = self._changed.version
            part = self._take(place, asked)
            if part:
                if not await self._bring(place, part):
                    asked |= self.wanted
            elif self._under_way and not self.wanted <= asked:
                await self._changed.wait_beyond(version)  # another may fail with what it has taken
            else:
                return

    def _take(self, place: Tier, asked: set[Blob]) -> list[Blob]:
        part: list[Blob] = []
        left: list[Blob] = []
        size = 0
        is_limited = place.name is TierName.PEER  # the others go through all that they get at their own pace
        while self._free:
            blob = self._free.pop()
            if blob in asked:
                left.append(blob)
                continue
            part.append(blob)
            size += blob.size
            if is_limited and (size >= _PART_BYTES or len(part) == _PART_BLOBS):
                break
        self._free += reversed(left)
        asked.update(part)
        return part

    async def _bring(self, place: Tier, part: list[Blob]) -> bool:
        """Whether the place may be asked for more."""
        self._under_way += 1
        arrived: Collection[Blob] = ()
        try:
            fetched = await self._fetch(place, part)
            arrived = fetched.arrived
            for blob, reason in fetched.failed.items():
                self._note(place, blob, reason)
        except TierError as error:
            if place.place not in self._failed:
                self._failed.add(place.place)
                log.warning("restore.place_failed", snapshot=str(self._what), place=place.place, reason=str(error))
            for blob in part:
                self._gathered.failed[blob] = _worse(self._gathered.failed.get(blob), error)
            return False
        else:
            return True
        finally:
            self.wanted.difference_update(arrived)
            self._free += (blob for blob in part if blob in self.wanted)
            self._under_way -= 1
            if moved := sum(blob.size for blob in arrived):
                sources = self._gathered.sources
                sources[place.place] = sources.get(place.place, 0) + moved
                metrics.bytes_moved(place.name.value, "in", moved)
            self._changed.announce()

    def _note(self, place: Tier, blob: Blob, reason: TierError) -> None:
        self._gathered.failed[blob] = _worse(self._gathered.failed.get(blob), reason)
        if isinstance(reason, Damaged):
            metrics.error("damaged")
            log.warning(
                "restore.content_damaged",
                snapshot=str(self._what),
                place=place.place,
                blob=blob.name,
                reason=str(reason),
            )


def _worse(before: TierError | None, now: TierError) -> TierError:
    """Of two reasons the one that may pass by itself."""
    if before is not None and not isinstance(before, Damaged | NotFound):
        return before
    if isinstance(now, NotFound) and before is not None:
        return before
    return now
