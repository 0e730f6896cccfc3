"""The second half of a restore: names are there and mounted, and content follows behind.

What the job opens comes first, by itself; the rest in the background, from several places at once, those before the
others that the job will probably open next. Until all of it
is here nothing is copied elsewhere: those who have it are those it comes from. A worker that is started again finds
in ``remote/`` what is still coming. Content that no place has, and that nobody who is away for a moment may have, is
asked for a few times; then its files answer EIO.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, FuseTierError, NotFound, TierError
from fuse_tier.identity import Identity
from fuse_tier.ram.arrival import Arrivals, coming_blob, coming_files, lose
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_TRIES = 4  # for what all that could be asked do not have
_LOOK_SECONDS = 0.005
_SOON_SECONDS = 0.15  # what the background is about to bring is waited for so long,
_FASTEST = 1e9  # and for as long as bytes would take at so many a second;
_FIRST_SECONDS = 2.0  # and at least so long for the first that a place was asked for: its stream is being opened

MakeRoom = Callable[[int], Awaitable[int]]


@dataclass(slots=True)
class _UnderWay:
    """What is being brought of one volume."""

    sink: Arrivals | None = None  # of the background
    begun: set[Blob] = field(default_factory=set)  # in the background
    first: set[Blob] = field(default_factory=set)  # of these the one of each part that comes first
    urgent: set[Blob] = field(default_factory=set)
    left_out: set[Blob] = field(default_factory=set)  # by the background: urgent at some time of this round of its
    ended: Broadcast = field(default_factory=Broadcast)  # something was urgent, and is no longer
    opened: list[int] = field(default_factory=list)  # inodes of the last two that were urgent
    is_behind: bool = False  # something was urgent since the background last chose what to bring

    def is_near(self, blob: Blob, waited: float) -> bool:
        """Whether the background brings something now, or soon.

        What it is at is waited for, however long that takes: the file is locked meanwhile, so that a second transfer
        could but throw away what comes. A source that stalls ends its stream, and that the lock.
        """
        is_landing = self.sink is not None and self.sink.is_landing(blob)
        soon = max(_SOON_SECONDS + blob.size / _FASTEST, _FIRST_SECONDS if blob in self.first else 0)
        return is_landing or (blob in self.begun and waited < soon)

    def begins(self, part: Collection[Blob]) -> None:
        """A place is asked for these by the background, in this order."""
        self.begun.update(part)
        self.first.update(islice(part, 1))


def as_wanted(waiting: Mapping[Blob, Sequence[int]], blobs: Iterable[Blob], opened: Sequence[int]) -> list[Blob]:
    """In the order in which a job will want them that goes on as it did with the last two that it opened.

    Inodes ascend in the order in which files were made, and a listing of a tmpfs shows the newest first: a job that
    opens what it lists goes backwards.
    """
    last, goes_back = opened[-1], opened[-1] < opened[0]

    def place(blob: Blob) -> tuple[bool, int]:
        ahead = (last - waiting[blob][0]) if goes_back else (waiting[blob][0] - last)
        return ahead < 0, abs(ahead)

    return sorted(blobs, key=place)


class Filling:
    """Brings the content of restored volumes of one node."""

    def __init__(
        self, layout: Layout, ram: RamTier, restorer: Restorer, make_room: MakeRoom, make_room_for_all: MakeRoom
    ) -> None:
        """``make_room_for_all`` is for content that gives up pieces by itself as it lands (ram/arrival.py)."""
        self._layout = layout
        self._ram = ram
        self._restorer = restorer
        self._make_room = make_room
        self._make_room_for_all = make_room_for_all
        self._under_way: dict[Identity, _UnderWay] = {}

    async def keep_filled(self, volume: Volume) -> None:
        """Brings what is coming of a volume, whenever something is. Runs for as long as the volume is local."""
        while True:
            news = volume.news.version
            if volume.coming is not None:
                await self._fill(volume, volume.coming)
            else:
                await volume.news.wait_beyond(news)

    async def materialize(self, volume: Volume, inode: int) -> None:
        """Sees that one file has its content: somebody waits for it. Raises TierError."""
        under_way, since = self._of(volume), trio.current_time()
        while (blob := coming_blob(volume.layout, inode)) is not None:
            if not under_way.is_near(blob, trio.current_time() - since):
                break
            await trio.sleep(_LOOK_SECONDS)  # threads bring it, and tell nobody
        if blob is None:
            return await self._restorer.materialize(volume, inode, self._make_room)
        under_way.urgent.add(blob)
        under_way.left_out.add(blob)
        under_way.opened = [*under_way.opened[-1:], inode]
        under_way.is_behind = True
        try:
            sink = Arrivals(self._layout, volume.layout, volume.pins, {blob: [inode]}, self._ram.place)
            chosen = volume.coming or Chosen(None)
            _, failed = await self._restorer.fetch(f"inode {inode} of {volume.identity}", [blob], sink, chosen)
        finally:
            under_way.urgent.discard(blob)
            under_way.ended.announce()
        if failed and coming_blob(volume.layout, inode) is not None:
            log.error("restore.content_lost", identity=str(volume.identity), blob=blob.name, reason=str(failed[blob]))
            raise failed[blob]
        return None

    def _of(self, volume: Volume) -> _UnderWay:
        return self._under_way.setdefault(volume.identity, _UnderWay())

    async def _fill(self, volume: Volume, chosen: Chosen) -> None:
        """Returns when all is here, or has been given up; or when the volume is another's, or was made anew."""
        started, pause, tries = trio.current_time(), _FIRST_PAUSE, 0
        sources: dict[str, int] = {}
        hopes = self._restorer.hopes(volume.identity)
        while waiting := await trio.to_thread.run_sync(coming_files, volume.layout):
            given, failed = await self._bring(volume, waiting, chosen, hopes.gone)
            for place, moved in given.items():
                sources[place] = sources.get(place, 0) + moved
            if volume.coming is not chosen:
                return
            if not failed:
                continue
            tries += 1
            if tries >= _TRIES and not hopes.may_come:
                await self._give_up(volume, chosen, failed)
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            await hopes.look(chosen)
        volume.coming = None
        try:
            await volume.list_newest()
        except (FuseTierError, OSError) as error:
            log.info("restore.not_listed", identity=str(volume.identity), reason=str(error))
        volume.news.announce()
        log.info(
            "volume.filled",
            identity=str(volume.identity),
            seconds=round(trio.current_time() - started, 3),
            sources=sources,
        )

    async def _bring(
        self, volume: Volume, waiting: dict[Blob, list[int]], chosen: Chosen, gone: Collection[str]
    ) -> tuple[dict[str, int], dict[Blob, TierError]]:
        """One round: all that waits, but what somebody waits for. Gives what came from where, and what nobody has."""
        under_way = self._of(volume)
        wanted = {blob: inodes for blob, inodes in waiting.items() if blob not in under_way.left_out}
        if not wanted:
            if under_way.urgent:
                await under_way.ended.wait_beyond(under_way.ended.version)
            under_way.left_out = set(under_way.urgent)
            return {}, {}
        await self._make_room_for_all(sum(blob.size * len(inodes) for blob, inodes in wanted.items()))
        sink = Arrivals(self._layout, volume.layout, volume.pins, wanted, self._ram.place, skipped=under_way.urgent)
        # As they were made, which is how they are read more often than not.
        ordered = sorted(wanted, key=lambda blob: min(wanted[blob]))

        def reorder(blobs: Sequence[Blob]) -> list[Blob] | None:
            is_behind, under_way.is_behind = under_way.is_behind, False
            if not is_behind:
                return None
            return as_wanted(wanted, [blob for blob in blobs if blob not in under_way.left_out], under_way.opened)

        under_way.sink = sink
        try:
            given, failed = await self._restorer.fetch(
                volume.identity, ordered, sink, chosen, begins=under_way.begins, reorder=reorder, gone=gone
            )
            return given, {blob: error for blob, error in failed.items() if blob not in under_way.left_out}
        finally:
            under_way.sink = None
            under_way.begun.clear()
            under_way.first.clear()
            under_way.left_out = set(under_way.urgent)

    async def _give_up(self, volume: Volume, chosen: Chosen, failed: dict[Blob, TierError]) -> None:
        lost = [blob for blob, error in failed.items() if isinstance(error, Damaged | NotFound)]
        async with volume.still:  # a snapshot that is just being taken may name it
            if volume.coming is not chosen:
                return
            paths = await trio.to_thread.run_sync(self._lose, volume, lost)
            newest, restored = volume.newest, chosen.manifest
            is_later = newest and restored and newest.id.number > restored.id.number
            if newest and is_later and not newest.blobs.isdisjoint(lost):
                # What the job has saved meanwhile names it, and could be copied to nobody.
                volume.tenure.is_to_be_renumbered = True
                volume.changes.announce()
        for path in paths:
            metrics.error("lost")
            log.error("restore.file_lost", identity=str(volume.identity), path=path)

    def _lose(self, volume: Volume, blobs: Collection[Blob]) -> list[str]:
        inodes = {inode for blob in blobs for inode in lose(self._layout, volume.layout, blob)}
        return [
            os.path.relpath(os.path.join(directory, name), volume.layout.tree)
            for directory, _, names in os.walk(volume.layout.tree)
            for name in names
            if inodes and os.lstat(os.path.join(directory, name)).st_ino in inodes
        ]
