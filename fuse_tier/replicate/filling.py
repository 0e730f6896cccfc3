"""The second half of a restore: names are there and mounted, and content follows behind.

What the job opens comes first, by itself; the rest in the background, from several places at once, those before the
others that the job will probably open next. Until all of it
is here nothing is copied elsewhere: those who have it are those it comes from. A worker that is started again finds
in ``remote/`` what is still coming. Content that no place has, and that nobody who is away for a moment may have, is
asked for a few times; then its files answer EIO.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, FuseTierError, NotFound, TierError
from fuse_tier.identity import Identity
from fuse_tier.members import Member
from fuse_tier.ram.arrival import Arrivals, coming_blob, coming_files, lose
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.lost import Lost
from fuse_tier.replicate.returning import bring_back
from fuse_tier.replicate.under_way import UnderWay, Urgent
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_TRIES = 4  # for what all that could be asked do not have
_LOOK_SECONDS = 0.005

MakeRoom = Callable[[int], Awaitable[int]]


class Filling:
    """Brings the content of restored volumes of one node."""

    def __init__(
        self, layout: Layout, ram: RamTier, fetcher: Fetcher, make_room: MakeRoom, make_room_for_all: MakeRoom
    ) -> None:
        """``make_room_for_all`` is for content that gives up pieces by itself as it lands (ram/arrival.py)."""
        self._layout = layout
        self._ram = ram
        self._fetcher = fetcher
        self._make_room = make_room
        self._make_room_for_all = make_room_for_all
        self._under_way: dict[Identity, UnderWay] = {}

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
        under_way = self._of(volume)
        while (blob := coming_blob(volume.layout, inode)) is not None:
            if (urgent := under_way.urgent.get(blob)) is not None:
                urgent.inodes.append(inode)
                await urgent.ended.wait()
            elif under_way.is_near(blob):
                await trio.sleep(_LOOK_SECONDS)  # threads bring it, and tell nobody
                continue
            else:
                urgent = await self._bring_now(volume, inode, blob)
            if urgent.error is not None and coming_blob(volume.layout, inode) is not None:
                raise urgent.error
        await bring_back(self._fetcher, self._ram, volume, inode, self._make_room)

    async def _bring_now(self, volume: Volume, inode: int, blob: Blob) -> Urgent:
        """For all who wait for it by the time that it is there."""
        under_way = self._of(volume)
        urgent = under_way.begin_urgent(blob, inode)
        try:
            waiting = {blob: urgent.inodes}
            sink = Arrivals(self._layout, volume.layout, volume.pins, waiting, self._ram.place)
            chosen = await self._with_what_is_here([blob], volume.coming or Chosen(None))
            _, failed = await self._fetcher.fetch(f"inode {inode} of {volume.identity}", [blob], sink, chosen)
            if failed and coming_blob(volume.layout, inode) is not None:  # else the background was faster
                urgent.error = failed[blob]
                log.error(
                    "restore.content_lost", identity=str(volume.identity), blob=blob.name, reason=str(urgent.error)
                )
        finally:
            under_way.end_urgent(blob)
        return urgent

    async def _with_what_is_here(self, blobs: Collection[Blob], chosen: Chosen) -> Chosen:
        """The own RAM is asked first if it has any of these by now: another file had that content, and came first."""
        if len(await self._ram.absent(blobs)) == len(blobs):
            return chosen
        return replace(chosen, places=(self._ram, *(place for place in chosen.places if place is not self._ram)))

    def _of(self, volume: Volume) -> UnderWay:
        return self._under_way.setdefault(volume.identity, UnderWay())

    async def _fill(self, volume: Volume, chosen: Chosen) -> None:
        """Returns when all is here, or has been given up; or when the volume is another's, or was made anew."""
        started, pause, tries = trio.current_time(), _FIRST_PAUSE, 0
        sources: dict[str, int] = {}
        hopes = self._fetcher.hopes(volume.identity)
        while waiting := await trio.to_thread.run_sync(coming_files, volume.layout):
            asked = hopes.reached()
            given, failed = await self._bring(volume, waiting, chosen, hopes.gone)
            for place, moved in given.items():
                sources[place] = sources.get(place, 0) + moved
            if volume.coming is not chosen:
                return
            if not failed:
                continue
            tries += 1
            if tries >= _TRIES and not hopes.may_come and await self._give_up(volume, chosen, failed, asked):
                continue
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
        under_way.sink = sink
        try:
            given, failed = await self._fetcher.fetch(
                volume.identity,
                ordered,
                sink,
                await self._with_what_is_here(ordered, chosen),
                begins=under_way.begin_part,
                reorder=under_way.reordering(wanted),
                unwanted=under_way.left_out,
                gone=gone,
            )
            return given, {blob: error for blob, error in failed.items() if blob not in under_way.left_out}
        finally:
            under_way.end_round()

    async def _give_up(
        self, volume: Volume, chosen: Chosen, failed: dict[Blob, TierError], asked: Collection[Member]
    ) -> bool:
        """Whether there was anything that nobody has, of those that were asked."""
        lost = [blob for blob, error in failed.items() if isinstance(error, Damaged | NotFound)]
        async with volume.still:  # a snapshot that is just being taken may name it
            if volume.coming is not chosen or not lost:
                return False
            paths = await trio.to_thread.run_sync(self._lose, volume, lost)
            volume.lost = Lost(asked)
            newest, restored = volume.newest, chosen.manifest
            is_later = newest and restored and newest.id.number > restored.id.number
            if newest and is_later and not newest.blobs.isdisjoint(lost):
                # What the job has saved meanwhile names it, and could be copied to nobody.
                volume.tenure.is_to_be_renumbered = True
                volume.changes.announce()
        for path in paths:
            metrics.error("lost")
            log.error("restore.file_lost", identity=str(volume.identity), path=path)
        return True

    def _lose(self, volume: Volume, blobs: Collection[Blob]) -> list[str]:
        inodes = {inode for blob in blobs for inode in lose(self._layout, volume.layout, blob)}
        return [
            os.path.relpath(os.path.join(directory, name), volume.layout.tree)
            for directory, _, names in os.walk(volume.layout.tree)
            for name in names
            if inodes and os.lstat(os.path.join(directory, name)).st_ino in inodes
        ]
