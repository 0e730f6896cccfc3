"""Keeping room in a node's RAM tier: looking how much is left, and giving up what eviction.py says.

What goes first is what is kept for nobody yet (ram/spares.py).

It looks twice a second while the tier is well filled, and after each commit, because the kernel writes for a job
without asking us; and it is asked before a file is made for which there is no room, and when a write finds none.
What has to go to the bucket first is waited for then, and goes at once. Ahead of need only what is superseded and
elsewhere goes; content of live files, and what is superseded and only here, goes when hardly anything is left or
somebody waits; content of live files also for the part of the room that is reserved for peers' copies.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.remote import mark
from fuse_tier.ram.room import Reserve, room_of
from fuse_tier.ram.spares import PIECE_BYTES, Spares
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.eviction import Eviction, Listed, LiveFile, plan_eviction
from fuse_tier.replicate.settling import latest_snapshot
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS = 0.5
_FILLED = 0.75  # from here on it looks, and gives up what is superseded
_HARDLY_ANY = 0.94
_SNAPSHOT_SECONDS = 30.0  # and no longer it takes, in most cases, to hash what is new
_SMALLEST_FILE_BYTES = 64 << 10  # content of smaller files is not worth fetching back


def nothing_comes(volume: Volume) -> bool:
    """For a node without a bucket."""
    return False


class KeptSpares(enum.Enum):
    """Which spares stay while room is made, and count as free."""

    NONE = enum.auto()
    PIECES = enum.auto()  # for who gives up as much of them as it allocates (Spares.release)
    ALL = enum.auto()  # where nobody allocates yet: they would only be made again


@dataclass(frozen=True, slots=True)
class Made:
    """What came of making room."""

    free: int
    coming: bool
    """Whether there will soon be more to give up."""


class RoomKeeper:
    """Keeps room on one node. ``brings`` says whether content of a volume is on its way to the bucket."""

    def __init__(
        self,
        layout: Layout,
        ram: RamTier,
        volumes: Volumes,
        wake: Broadcast,
        reserved_bytes: int = 0,
        needed: Callable[[Identity], Collection[int] | None] = lambda identity: (),
        brings: Callable[[Volume], bool] = nothing_comes,
    ) -> None:
        self._layout = layout
        self._ram = ram
        self._volumes = volumes
        self._wake = wake
        self._reserved = reserved_bytes
        self._brings = brings
        self._needed = needed  # parts of jobs' newest complete checkpoints
        self._reserve = Reserve(layout)
        self._spares = Spares(layout)
        self._turn = trio.Lock()
        self._known: dict[SnapshotId, frozenset[Blob]] = {}
        ram.spared = self.newest_content

    async def run(self) -> None:
        """Looks until cancelled."""
        seen = -1
        while True:
            with trio.move_on_after(_LOOK_EVERY_SECONDS):
                seen = await self._wake.wait_beyond(seen)
            room = room_of(self._layout.root)
            try:
                if room.used > _FILLED * room.capacity:
                    wanted = int((1 - _FILLED) * room.capacity)
                    scarce = room.used > _HARDLY_ANY * room.capacity
                    # The kernel writes for a job without asking: with hardly any room left, the next write may fail.
                    await self._free(wanted if not scarce else wanted // 2, live=scarce, at_any_price=scarce)
                if self._reserved:
                    await self._free(await self._still_reserved(), live=True, at_any_price=False, kept=KeptSpares.ALL)
                await trio.to_thread.run_sync(self._reserve.refill)
            except (FuseTierError, OSError) as error:
                metrics.error("room")
                log.warning("room.not_kept", reason=str(error))
            await trio.sleep(_LOOK_EVERY_SECONDS / 5)  # commits come in bursts

    async def make(self, wanted: int, *, for_replica: bool = False, kept: KeptSpares = KeptSpares.NONE) -> int:
        """Gives up things until so many bytes are free, or all is done; gives the bytes that are."""
        with trio.move_on_after(Deadline.ROOM * 0.75):
            live = not for_replica or wanted <= await self._still_reserved()
            await self._free(wanted, live=live, at_any_price=not for_replica, kept=kept)
        free = self._free_bytes(kept)
        if free < wanted and not for_replica:
            self._tell_of_shortage(wanted, free)
        return free

    async def make_for_job(self, wanted: int, waited: float | None) -> Made:
        """The same, for a job; one that has ``waited`` for so many seconds waits a moment more for what is coming."""
        with trio.move_on_after(Deadline.ROOM * 0.75) as scope:
            seen = self._wake.version
            await self._free(wanted, live=True, at_any_price=True)
            while waited is not None and self._free_bytes() < wanted and self._is_coming(waited):
                self._hurry()
                seen = await self._wake.wait_beyond(seen)
                await self._free(wanted, live=True, at_any_price=True)
        free = self._free_bytes()
        coming = scope.cancelled_caught or self._is_coming(waited or 0.0)
        if free < wanted and not coming:
            self._tell_of_shortage(wanted, free)
        return Made(free, coming)

    def _is_coming(self, waited: float) -> bool:
        """Whether content is on its way to the bucket, or soon will be, as what has just changed."""
        return any(
            self._brings(volume)
            and (
                volume.copies.newest_beyond_bucket()
                or (volume.changes.version > volume.seen and waited < latest_snapshot(volume) + _SNAPSHOT_SECONDS)
            )
            for volume in self._volumes
            if volume.has_tree and not volume.tenure.superseded
        )

    def _hurry(self) -> None:
        """What is to go to the bucket at some time goes now."""
        for volume in self._volumes:
            if volume.newest is not None and volume.copies.newest_beyond_bucket():
                volume.demand(volume.newest.id.number)

    def _free_bytes(self, kept: KeptSpares = KeptSpares.NONE) -> int:
        free = room_of(self._layout.root).free
        if kept is KeptSpares.NONE:
            return free
        spares = self._spares
        return free + (spares.pieces() * PIECE_BYTES if kept is KeptSpares.PIECES else sum(spares.sizes()))

    def _tell_of_shortage(self, wanted: int, free: int) -> None:
        metrics.error("no_room")
        log.info("room.short", wanted=wanted, free=free)

    async def _still_reserved(self) -> int:
        """Bytes of the room reserved for peers' copies that they have not taken yet."""
        if not self._reserved:
            return 0
        copies = {blob for one in await self._listed() if not one.own for blob in one.blobs}
        return max(0, self._reserved - sum(blob.size for blob in copies))

    async def release(self, volume: Volume, inode: int) -> None:
        """A file is about to be written whose content we keep: lets go of it if it is verified elsewhere."""
        blob = volume.pins.known_blob(inode)
        if blob is None or not volume.copies.is_elsewhere(blob):
            return
        async with self._turn:
            holders = [one for one in await self._listed() if blob in one.blobs]
            if all(one.own and one.snapshot.identity == volume.identity and not one.is_busy for one in holders):
                await self._drop([one.snapshot for one in holders])
                await self._ram.release({blob}, shared=True)

    async def _free(self, wanted: int, *, live: bool, at_any_price: bool, kept: KeptSpares = KeptSpares.NONE) -> None:
        async with self._turn:
            if self._free_bytes(kept) >= wanted:
                return
            if kept is not KeptSpares.ALL:
                self._spares.give_up(pieces=kept is KeptSpares.NONE)
            free = self._free_bytes(kept)
            if free >= wanted:
                return
            listed = await self._listed()
            blobs = {blob for one in listed for blob in one.blobs}
            in_tree = await trio.to_thread.run_sync(self._shared, blobs)
            files = await self._evictable() if live else []
            plan = plan_eviction(listed, files, wanted - free, in_tree=in_tree, at_any_price=at_any_price)
            if plan.drop or plan.files:
                await self._carry_out(plan)

    async def _listed(self) -> list[Listed]:
        numbers = await self._ram.snapshots()
        known = {snapshot: self._known[snapshot] for snapshot in numbers if snapshot in self._known}
        for snapshot in numbers:
            if snapshot not in known:
                with suppress(FuseTierError):  # dropped since, or unreadable: upkeep tells
                    known[snapshot] = (await self._ram.manifest(snapshot)).blobs
        self._known = known
        return [self._describe(snapshot, blobs) for snapshot, blobs in known.items()]

    def _describe(self, snapshot: SnapshotId, blobs: frozenset[Blob]) -> Listed:
        volume = self._volumes.find(snapshot.identity)
        is_needed = snapshot.number in (self._needed(snapshot.identity) or ())
        if volume is None or not volume.has_tree:
            return Listed(snapshot, blobs, in_use=is_needed)
        held = (*volume.copies.held(TierName.PEER).values(), *volume.copies.held(TierName.BUCKET).values())
        elsewhere = max(held, default=0) >= snapshot.number
        in_use, sent = snapshot.number in volume.in_use, snapshot.number in volume.sending.numbers
        return Listed(snapshot, blobs, True, elsewhere, is_needed or in_use, sent)

    def _shared(self, blobs: Collection[Blob]) -> frozenset[Blob]:
        shared = set()
        for blob in blobs:
            with suppress(FileNotFoundError):
                if os.lstat(self._layout.blob(blob)).st_nlink > 1:
                    shared.add(blob)
        return frozenset(shared)

    async def _evictable(self) -> list[LiveFile]:
        files: list[LiveFile] = []
        for volume in self._volumes:
            if volume.has_tree and volume.gate is not None and (durable := volume.copies.blobs_in_bucket()):
                files += await trio.to_thread.run_sync(self._files_of, volume, durable)
        return files

    def _files_of(self, volume: Volume, durable: Collection[Blob]) -> list[LiveFile]:
        files: list[LiveFile] = []
        for name in os.listdir(volume.layout.pins):
            blob = volume.pins.known_blob(int(name)) if name.isdigit() else None
            if blob is None or blob.size < _SMALLEST_FILE_BYTES or blob not in durable:
                continue
            with suppress(FileNotFoundError):
                status = os.lstat(self._layout.blob(blob))
                if status.st_ino == int(name) and not volume.is_remote(int(name)):
                    files.append(LiveFile(volume.identity, int(name), blob, status.st_mtime_ns))
        return files

    async def _carry_out(self, plan: Eviction) -> None:
        before = self._free_bytes()
        by_volume: dict[Identity, dict[int, Blob]] = {}
        for file in plan.files:
            by_volume.setdefault(file.identity, {})[file.inode] = file.blob
        await self._drop(plan.drop)
        for identity, files in by_volume.items():
            volume = self._volumes.find(identity)
            if volume is not None:
                await self._give_up(volume, files)
        freed = self._free_bytes() - before
        metrics.given_up(max(0, freed))
        log.info("room.made", snapshots=[str(one) for one in plan.drop], files=len(plan.files), bytes=freed)

    async def _drop(self, snapshots: Collection[SnapshotId]) -> None:
        blobs: set[Blob] = set()
        for snapshot in snapshots:
            volume = self._volumes.find(snapshot.identity)
            if volume is not None:
                await volume.sending.stop(snapshot.number)
            await self._ram.drop(snapshot)
            blobs |= self._known.pop(snapshot, frozenset())
            if volume is not None:
                volume.copies.dropped_from_ram(snapshot.number)
        await self._ram.release(blobs - self.newest_content())

    def newest_content(self) -> set[Blob]:
        """What volumes' newest snapshots name: also of one that is not listed, and is still being copied."""
        return {blob for volume in self._volumes if volume.newest is not None for blob in volume.newest.blobs}

    async def _give_up(self, volume: Volume, files: dict[int, Blob]) -> None:
        async with volume.evicting:
            if volume.retire is not None:
                retired = await volume.retire(files)
            elif volume.mountpoint is None:
                retired = await trio.to_thread.run_sync(self._mark, volume, files)
            else:
                return
            given_up = await self._ram.give_up(volume.layout, {inode: files[inode] for inode in retired})
            for inode, freed in given_up.items():
                log.debug("file.given_up", identity=str(volume.identity), inode=inode, bytes=freed)

    def _mark(self, volume: Volume, files: dict[int, Blob]) -> list[int]:
        return [inode for inode, blob in files.items() if mark(self._layout, volume.layout, inode, blob)]
