"""Bringing content from several places at once.

The nearest first: what all places of one rank cannot give is asked of the next. Within a rank every place takes from
one heap of what is wanted, a limited part at a time, so that the faster gives more, and one that dies in the middle
costs only the part that it had taken: another takes it. Decides nothing about who is asked, and trusts the places'
tiers to verify what they bring.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, NotFound, TierError
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.tiers.base import Fetched, Tier, TierName

log = structlog.get_logger(__name__)

_PART_BYTES = 64 << 20
_FIRST_PART_BYTES = 16 << 20  # where the order may change: what is opened first shows what will be wanted next,
_PART_SECONDS = 0.25  # and what is opened later shall not lie far back in what was asked for already
_PARTS = 16  # of much: each costs calls and a stream, however large it is
_PART_BLOBS = 512
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_PATIENCE_SECONDS = 15.0  # with somebody who is getting what we want, and of whom nothing comes
_SLOWEST = 100 << 20  # bytes a second, at which it gets what is large: content is passed on when it is all there
_PARTS_AT_ONCE = 2  # of one peer: while one ends the other begins

FetchFrom = Callable[[Tier, Collection[Blob]], Awaitable[Fetched]]
"""Has a place bring blobs to where they are wanted. Raises TierError when nothing can be said of any."""


Refer = Callable[[Tier, Sequence[Blob]], Awaitable[Mapping[Blob, Tier]]]
"""Asks a place who else is just getting content that it has: that is to be asked instead."""

Reorder = Callable[[Sequence[Blob]], Sequence[Blob] | None]
"""What is still to be brought, in another order; None if that is to stay as it is."""


async def nobody_else(place: Tier, blobs: Sequence[Blob]) -> Mapping[Blob, Tier]:
    """Each place gives all that is asked of it."""
    await trio.lowlevel.checkpoint()
    return {}


@dataclass(slots=True)
class Gathered:
    """What came of it."""

    sources: dict[str, int] = field(default_factory=dict)  # place -> bytes that it gave
    failed: dict[Blob, TierError] = field(default_factory=dict)  # what nobody could give, and why


async def gather(
    what: object,
    blobs: Collection[Blob],
    ranks: Sequence[Sequence[Tier]],
    fetch: FetchFrom,
    refer: Refer = nobody_else,
    *,
    reorder: Reorder | None = None,
    unwanted: Collection[Blob] = (),
) -> Gathered:
    """Brings blobs from the places of each rank in turn. ``what`` is named in the log. Never raises TierError.

    Large ones come first, so that all places end at about the same time; with ``reorder``, as they stand in
    ``blobs``, or as it says before each part. What is ``unwanted``, which may grow meanwhile, is asked for no more.
    """
    gathered = Gathered()
    wanted = (
        list(dict.fromkeys(blobs))
        if reorder is not None
        else sorted(set(blobs), key=lambda blob: (-blob.size, blob.digest))
    )
    for places in ranks:
        if wanted:
            async with trio.open_nursery() as nursery:
                heap = _Heap(what, wanted, gathered, fetch, refer, nursery, reorder, unwanted)
                for place in places:
                    for _ in range(_PARTS_AT_ONCE if place.name is TierName.PEER else 1):
                        nursery.start_soon(heap.take_from, place)
            wanted = [blob for blob in wanted if blob in heap.wanted]
    gathered.failed = {blob: gathered.failed.get(blob, NotFound(f"no place has {blob}")) for blob in wanted}
    return gathered


class _Heap:
    """What is wanted of the places of one rank."""

    def __init__(
        self,
        what: object,
        wanted: Collection[Blob],
        gathered: Gathered,
        fetch: FetchFrom,
        refer: Refer,
        nursery: trio.Nursery,
        reorder: Reorder | None,
        unwanted: Collection[Blob],
    ) -> None:
        self.wanted = set(wanted)
        self._what = what
        self._gathered = gathered
        self._fetch = fetch
        self._refer = refer
        self._nursery = nursery
        self._reorder = reorder
        self._unwanted = unwanted
        self._insisted: set[Blob] = set()  # others had nothing after all
        self._free = [*reversed(list(wanted))]  # taken from the end
        self._largest_part = max(_PART_BYTES, sum(blob.size for blob in wanted) // _PARTS)
        self._part_bytes: dict[str, int] = {}  # by place, where the order may change
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
                part = await self._send_for(place, part, asked)
                if part and not await self._bring(place, part):
                    asked |= self.wanted
            elif self._under_way and not self.wanted <= asked:
                await self._changed.wait_beyond(version)  # another may fail with what it has taken
            else:
                return

    def _take(self, place: Tier, asked: set[Blob]) -> list[Blob]:
        if self._give_up_unwanted():
            self._free = [blob for blob in self._free if blob in self.wanted]
        if self._reorder is not None and (reordered := self._reorder(self._free)) is not None:
            self._free = [*reversed(reordered)]
        part: list[Blob] = []
        left: list[Blob] = []
        size = 0
        is_limited = place.name is TierName.PEER  # the others go through all that they get at their own pace
        most = self._largest_part
        if self._reorder is not None:
            most = self._part_bytes.get(place.place, _FIRST_PART_BYTES)
        while self._free:
            blob = self._free.pop()
            if blob in asked:
                left.append(blob)
                continue
            if is_limited and part and (size + blob.size > most or len(part) == _PART_BLOBS):
                self._free.append(blob)
                break
            part.append(blob)
            size += blob.size
        self._free += reversed(left)
        asked.update(part)
        return part

    def _give_up_unwanted(self) -> bool:
        """Whether there was any."""
        unwanted = self.wanted.intersection(self._unwanted)
        self.wanted -= unwanted
        return bool(unwanted)

    async def _send_for(self, place: Tier, part: list[Blob], asked: set[Blob]) -> list[Blob]:
        """Has others bring what they are getting from this place; gives what it has to bring itself."""
        mine = [blob for blob in part if blob not in self._insisted]
        self._under_way += 1
        try:
            referred = await self._refer(place, mine) if mine else {}
        except TierError:
            referred = {}  # it will be seen when it is asked for the content
        finally:
            self._under_way -= 1
        by_place: dict[str, tuple[Tier, set[Blob]]] = {}
        for blob, other in referred.items():
            by_place.setdefault(other.place, (other, set()))[1].add(blob)
        asked.difference_update(referred)  # it is asked again if they come with nothing
        for other, blobs in by_place.values():
            self._under_way += 1
            self._nursery.start_soon(self._wait_for, other, blobs)
        self._give_up_unwanted()
        return [blob for blob in part if blob not in referred and blob in self.wanted]

    async def _wait_for(self, place: Tier, blobs: set[Blob]) -> None:
        """A place that is getting content itself: what it has by now, again and again, while more comes."""
        getting = max(blob.size for blob in blobs) / _SLOWEST
        patience = _PATIENCE_SECONDS + min(getting, Deadline.BULK_STALL_LONGEST)
        pause, patient_until = _FIRST_PAUSE, trio.current_time() + patience
        try:
            while trio.current_time() < patient_until:
                self._give_up_unwanted()
                blobs &= self.wanted
                if not blobs:
                    break
                fetched = await self._fetch(place, blobs)
                if fetched.arrived:
                    self._arrived(place, fetched.arrived)
                    blobs -= fetched.arrived
                    pause, patient_until = _FIRST_PAUSE, trio.current_time() + patience
                elif any(not isinstance(error, NotFound) for error in fetched.failed.values()):
                    break
                else:
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TierError as error:
            log.info("restore.referral_failed", snapshot=str(self._what), place=place.place, reason=str(error))
        finally:
            self._insisted |= blobs
            self._free += (blob for blob in blobs if blob in self.wanted)
            self._under_way -= 1
            self._changed.announce()

    def _arrived(self, place: Tier, blobs: Collection[Blob]) -> None:
        self.wanted.difference_update(blobs)
        if moved := sum(blob.size for blob in blobs):
            sources = self._gathered.sources
            sources[place.place] = sources.get(place.place, 0) + moved
            metrics.bytes_moved(place.name.value, "in", moved)

    async def _bring(self, place: Tier, part: list[Blob]) -> bool:
        """Whether the place may be asked for more."""
        self._under_way += 1
        arrived: Collection[Blob] = ()
        began = trio.current_time()
        try:
            fetched = await self._fetch(place, part)
            arrived = fetched.arrived
            self._measured(place, sum(blob.size for blob in arrived), trio.current_time() - began)
            for blob, reason in fetched.failed.items():
                self._note(place, blob, reason)
        except TierError as error:
            if place.place not in self._failed:
                self._failed.add(place.place)
                log.warning("restore.place_failed", snapshot=str(self._what), place=place.place, reason=str(error))
            # It might have had what it will not even be asked for.
            for blob in self.wanted.difference(self._asked[place.place]).union(part):
                self._gathered.failed[blob] = _worse(self._gathered.failed.get(blob), error)
            return False
        else:
            return True
        finally:
            self._arrived(place, arrived)
            self._free += (blob for blob in part if blob in self.wanted)
            self._under_way -= 1
            self._changed.announce()

    def _measured(self, place: Tier, size: int, seconds: float) -> None:
        """A place is asked for as much at a time as it gives in a moment."""
        most = int(size * _PART_SECONDS / seconds) if seconds > 0 else self._largest_part
        self._part_bytes[place.place] = max(_FIRST_PART_BYTES, min(self._largest_part, most))

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
