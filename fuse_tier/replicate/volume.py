"""One local volume as its node's worker sees it: its live tree, its snapshots, and where copies of them are.

It takes snapshots when the tree has settled, and tells everybody who waits. It copies nothing (fanout.py)
and restores nothing (restore.py). What it holds in memory is either read from the RAM tier at the start or
told by those who verified it; a restart loses nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import number_after, number_before
from fuse_tier.errors import FuseTierError, IncompleteSnapshot, SnapshotConflict
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage, Manifest
from fuse_tier.ram.arrival import coming_files
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import remote_files
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.record import TreeRecord, read_record, write_record
from fuse_tier.replicate.snapshot import Gate, Quiescent, Snapshotter
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_SETTLE_AT_MOST = 10  # times the settle time: then a snapshot is taken of a tree that never settles
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.02
_UNSETTLED_SECONDS = 1.0  # until it is looked again whether a file is still written through a mapping


Retire = Callable[[dict[int, Blob]], Awaitable[list[int]]]
"""Marks those of these files that are not open (ram/remote.py), and gives their inode numbers."""


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """What the node's configuration says about all its volumes."""

    node: str
    settle: float  # seconds without a change before a snapshot is taken
    replicas: int  # copies in peers' RAM


class Volume:
    """A volume whose live tree is on this node. Use from one trio thread."""

    def __init__(
        self, identity: Identity, ram: RamTier, layout: Layout, options: VolumeOptions, hashing: trio.CapacityLimiter
    ) -> None:
        self.identity = identity
        self.layout = layout.volume(identity)
        self.pins = Pins(layout, self.layout)
        self.newest: Manifest | None = None
        self.mountpoint: str | None = None
        self.gate: Gate | None = Quiescent()  # None: mounted, but its daemon cannot be asked at present
        self.changes = Broadcast()  # of the live tree
        self.news = Broadcast()  # of snapshots, of where they are, and of mounting
        self.retire: Retire | None = None  # asks the mount's daemon
        self.unreserved_bytes = 0  # memory that the job was the first to touch
        self.mounting = trio.Lock()
        self.evicting = trio.Lock()
        self.ending = trio.Lock()
        self.in_use: Counter[int] = Counter()
        self.demanded = 0  # the newest snapshot that somebody waits for in the bucket
        self._ram = ram
        self.options = options
        self._copies = max(1, options.replicas)
        self._lineage: Lineage | None = None
        self.epoch = 0  # under which this node owns it, or did last (epochs.py)
        self.lacks_numbers = False  # the next number is not of this epoch: another epoch is needed
        self._highest = 0
        self._snapshotting = trio.Lock()
        self._snapshotter = Snapshotter(layout, self.layout, options.node, hashing, self.evicting)
        self._seen = -1  # version of the changes that the newest snapshot has
        self._renumber = False
        self.coming: Chosen | None = None  # what a restore is still bringing, and from whom
        self.superseded = ""  # who else goes on with this volume, so that this tree must not; empty: nobody
        self._verified = 0  # the newest snapshot that was ever verified elsewhere
        self._listed = True  # the newest snapshot, in RAM: unless content of it was given up
        self._held: dict[tuple[TierName, str], int] = {}
        self._blobs: dict[int, frozenset[Blob]] = {}  # of the newest snapshots, to tell where a file is

    @property
    def lineage(self) -> Lineage:
        """Of the live tree. Raises FuseTierError when there is none."""
        if self._lineage is None:
            raise FuseTierError(f"{self.identity} has no files on this node: mount it first")
        return self._lineage

    @property
    def has_tree(self) -> bool:
        """Whether there is a live tree."""
        return self._lineage is not None

    @property
    def is_settled(self) -> bool:
        """Whether the last snapshot had every file that was closed: none was still written through a mapping."""
        return self._snapshotter.is_settled

    @property
    def is_dirty(self) -> bool:
        """Whether the tree has changed since the newest snapshot."""
        return self.has_tree and (self.changes.version > self._seen or not self._snapshotter.is_settled)

    @property
    def highest(self) -> int:
        """The highest snapshot number known to exist anywhere: the next one is above it."""
        return self._highest

    def is_remote(self, inode: int) -> bool:
        """Whether a file's content is not here yet."""
        return os.path.lexists(os.path.join(self.layout.remote, str(inode)))

    def _read_record(self) -> TreeRecord | None:
        return read_record(self.layout) if os.path.isdir(self.layout.tree) else None

    def make_directories(self) -> None:
        """Everything but the tree."""
        for path in (self.layout.root, self.layout.pins, self.layout.remote):
            os.makedirs(path, mode=0o700, exist_ok=True)

    async def load(self) -> None:
        """Reads what the RAM tier has of this volume."""
        self.make_directories()
        await trio.to_thread.run_sync(self.pins.recover)
        record = self._read_record()
        numbers = [snapshot.number for snapshot in await self._ram.snapshots(self.identity)]
        self._highest = max([self._highest, *numbers])
        self._lineage = record.lineage if record else None
        if record:
            self.coming = Chosen(None) if await trio.to_thread.run_sync(coming_files, self.layout) else None
            self._highest = max(self._highest, record.number)
            self.superseded = record.superseded
            self.epoch = record.epoch
            own = [number for number in numbers if number <= record.number]
            self.newest = await self._load_newest(own)
            if self.newest is not None:
                self._remember(self.newest)
        self.changes.announce()

    def _remember(self, manifest: Manifest) -> None:
        """Keeps the content of a snapshot in mind, until a newer one is on every tier that had an older one."""
        self._blobs[manifest.id.number] = manifest.blobs
        wanted = {self.durable(tier, self._copies) for tier in TierName} | {manifest.id.number}
        self._blobs = {number: blobs for number, blobs in self._blobs.items() if number >= min(wanted - {0})}

    async def _load_newest(self, numbers: list[int]) -> Manifest | None:
        for number in reversed(numbers):
            try:
                return await self._ram.manifest(SnapshotId(self.identity, number))
            except FuseTierError as error:
                log.error("snapshot.unreadable", identity=str(self.identity), snapshot=number, reason=str(error))
        return None

    def began(
        self,
        lineage: Lineage,
        restored: Manifest | None,
        highest: int,
        *,
        is_whole: bool = True,
        coming: Chosen | None = None,
        epoch: int = 0,
        anew: bool = False,
    ) -> None:
        """The live tree has been made anew: from a snapshot, or empty; it is owned under ``epoch`` from now on.

        ``anew``: what was restored has to count as newer than what others may have, at once.
        One that could not be restored whole is not given up: its lost files stand in no later one.
        """
        self.in_use.clear()
        self.superseded = ""
        self.coming = coming
        self._listed = coming is None
        self._verified = 0
        if restored is not None and not is_whole:
            self.in_use[restored.id.number] += 1
        self._lineage = lineage
        self.newest = restored
        self._held.clear()
        self._blobs.clear()
        if restored is not None:
            self._remember(restored)
        self._highest = max(self._highest, highest, restored.id.number if restored else 0)
        # Going back to an older state is a new state: it has to be the newest wherever it is looked for.
        self._renumber = restored is not None and (anew or restored.id.number < self._highest)
        self._own(epoch)
        self.changes.announce()
        self.news.announce()

    def resume(self, lineage: Lineage, highest: int, epoch: int, *, anew: bool) -> None:
        """The live tree goes on as it is, under the lineage of who mounts it now. See ``began``."""
        self._highest = max(self._highest, highest)
        if lineage != self._lineage or anew:
            self._lineage = lineage
            self._renumber = self._renumber or anew
            self.changes.announce()
        self._own(epoch)

    async def renew(self, epoch: int) -> None:
        """This node goes on with a volume that it has mounted, under another epoch if that is a later one."""
        if epoch > self.epoch and self.has_tree:
            self._renumber = self._renumber or self.newest is not None
            await trio.to_thread.run_sync(self._own, epoch)
            self.changes.announce()

    def _own(self, epoch: int) -> None:
        self.epoch, self.lacks_numbers = max(epoch, self.epoch), False
        number = self.newest.id.number if self.newest else 0
        write_record(self.layout, TreeRecord(self.lineage, number, self.superseded, self.epoch))

    def _next_number(self) -> int:
        """The number of the next snapshot. Raises FuseTierError when there is none in this epoch."""
        number = max(self._highest, number_before(self.epoch)) + 1
        if number < number_after(self.epoch):
            return number
        if self.mountpoint is None:
            self.superseded = "another node"
        self.lacks_numbers = True
        self.news.announce()
        raise FuseTierError(
            f"{self.identity}: there is a snapshot {self._highest}, of an epoch after this node's ({self.epoch}): "
            "none is taken here before it is clear whose the volume is"
        )

    def exists_elsewhere(self, number: int) -> None:
        """Somebody has a snapshot of this number: ours must have another."""
        self._highest = max(self._highest, number)
        if self.newest is not None and number >= self.newest.id.number:
            self._renumber = True
            self.changes.announce()

    @property
    def verified(self) -> int:
        """The newest snapshot that was verified elsewhere, as far as this process has seen; 0: none."""
        return self._verified

    # ---- where snapshots are ----

    def stored(self, tier: TierName, place: str, number: int) -> None:
        """A copy of a snapshot has been verified at a place."""
        self._held[tier, place] = max(number, self._held.get((tier, place), 0))
        self._verified = max(self._verified, number)
        if self.newest is not None and self.newest.id.number == number:
            metrics.durable(str(self.identity), tier.value, self.newest.created_ns)
        self.news.announce()

    def lost(self, tier: TierName, place: str) -> None:
        """A place has lost what it had."""
        if self._held.pop((tier, place), None) is not None:
            self.news.announce()

    def held(self, tier: TierName) -> dict[str, int]:
        """The newest snapshot that each place of a tier has, by place."""
        return {place: number for (kind, place), number in self._held.items() if kind is tier}

    def durable(self, tier: TierName, copies: int = 1) -> int:
        """The newest snapshot that is on a tier, for peers in at least so many copies; 0: none."""
        if tier is TierName.RAM:
            return self.newest.id.number if self.newest else 0
        numbers = sorted(self.held(tier).values(), reverse=True)
        return numbers[copies - 1] if len(numbers) >= copies else 0

    def in_bucket(self) -> int:
        """The newest snapshot that this node knows to be in the bucket; 0: none."""
        return self.durable(TierName.BUCKET)

    def newest_beyond_bucket(self) -> bool:
        """Whether there is a snapshot that the bucket has not."""
        return self.newest is not None and self.in_bucket() < self.newest.id.number

    def blobs_in_bucket(self) -> frozenset[Blob]:
        """Content of which this node knows that the bucket has it."""
        return self._blobs.get(self.in_bucket(), frozenset())

    def is_elsewhere(self, blob: Blob) -> bool:
        """Whether a snapshot with this content is verified on another tier."""
        return any(blob in self._blobs.get(self.durable(tier), ()) for tier in (TierName.PEER, TierName.BUCKET))

    def dropped_from_ram(self, number: int) -> None:
        """The RAM tier lists a snapshot no more, because room was short; the tree is as it was."""
        if self.newest is not None and self.newest.id.number == number:
            self._listed = False

    def state(self) -> str:
        """For people: ``dirty``, or the tiers that have the whole tree."""
        if self.is_dirty or self.newest is None:
            return "dirty"
        number = self.newest.id.number
        tiers = [tier for tier in TierName if self.durable(tier, self._copies) >= number]
        return ",".join(tier for tier in tiers if self._listed or tier is not TierName.RAM) or "sealed"

    def state_of(self, blob: Blob) -> str:
        """For people: the tiers that have a file's content as part of a snapshot, or ``sealed`` for none yet."""
        have = []
        for tier in TierName:
            blobs = self._blobs.get(self.durable(tier, self._copies))
            if blobs is not None and blob in blobs:
                have.append(tier.value)
        return ",".join(have) or "sealed"

    @contextmanager
    def using(self, number: int) -> Iterator[None]:
        """While a snapshot is being copied it is not given up."""
        self.in_use[number] += 1
        try:
            yield
        finally:
            self.in_use[number] -= 1
            if self.in_use[number] <= 0:  # the tree was made anew meanwhile
                del self.in_use[number]

    # ---- snapshots ----

    async def keep_snapshots(self) -> None:
        """Takes a snapshot whenever the tree has changed and settled. Runs for as long as the volume is local."""
        while True:
            # Nobody tells when a mapping goes.
            with trio.move_on_after(inf if self._snapshotter.is_settled else _UNSETTLED_SECONDS):
                await self.changes.wait_beyond(self._seen)
            if not self.has_tree or self.gate is None or self.superseded:
                await self.news.wait_beyond(self.news.version)
                continue
            await self._wait_until_settled()
            try:
                await self.take_snapshot()
            except (FuseTierError, OSError) as error:
                metrics.error("snapshot")
                log.warning("snapshot.postponed", identity=str(self.identity), reason=str(error))
                await trio.sleep(_RETRY_SECONDS)

    async def _wait_until_settled(self) -> None:
        with trio.move_on_after(self.options.settle * _SETTLE_AT_MOST):
            unsettled = True
            while unsettled:
                with trio.move_on_after(self.options.settle) as quiet:
                    await self.changes.wait_beyond(self.changes.version)
                unsettled = not quiet.cancelled_caught

    async def take_snapshot(self) -> Manifest | None:
        """The newest snapshot, after one was taken of the tree as it is now, if it differs.

        None when there never was anything in the tree: emptiness is not worth a number, and must not push
        out what an earlier run left. Raises FuseTierError (no tree, or it changes for too long, or the daemon is
        away), OSError (no room).
        """
        if self.superseded:
            raise FuseTierError(
                f"{self.identity} was taken over by {self.superseded}, and no more snapshots are taken here: "
                "unmount it; a new mount continues with the files of there"
            )
        async with self._snapshotting:
            gate = await self._wait_for_gate()
            with self._ram.unfinished():
                return await self._take_snapshot(gate)

    async def _take_snapshot(self, gate: Gate) -> Manifest | None:
        version, previous, started = self.changes.version, self.newest, trio.current_time()
        snapshot = SnapshotId(self.identity, self._next_number())
        manifest = await self._snapshotter.take(snapshot, self.lineage, gate, previous)
        if await trio.to_thread.run_sync(self._is_worth_a_number, previous, manifest):
            previous = await self._commit(manifest, trio.current_time() - started)
        self._seen = version
        return previous

    def _is_worth_a_number(self, previous: Manifest | None, manifest: Manifest) -> bool:
        if previous is None:
            return len(manifest.entries) > 1
        if self._renumber or previous.lineage != manifest.lineage:
            return True
        lost = self._lost_paths(previous, manifest)
        return tuple(entry for entry in previous.entries if entry.path not in lost) != manifest.entries

    def _lost_paths(self, previous: Manifest, manifest: Manifest) -> set[bytes]:
        """Files that stand in the tree, but whose content no place could give: no snapshot can have them."""
        if not os.listdir(self.layout.remote):
            return set()
        tree = os.fsencode(self.layout.tree)
        absent = {entry.path for entry in previous.entries} - {entry.path for entry in manifest.entries}
        return {path for path in absent if os.path.lexists(os.path.join(tree, path))}

    async def _wait_for_gate(self) -> Gate:
        with trio.move_on_after(Deadline.SUPERVISOR_CONNECT):
            while self.gate is None:
                await self.news.wait_beyond(self.news.version)
        if self.gate is None:
            raise FuseTierError(f"{self.identity}: its mount daemon is away; it is started again by itself")
        return self.gate

    async def _commit(self, manifest: Manifest, seconds: float) -> Manifest:
        failpoints.reached("snapshot.walked")
        try:
            self._listed = await self._list(manifest)
        except SnapshotConflict as conflict:
            # A replica that came from elsewhere has the number: take one above it, if the volume is still ours.
            if self.mountpoint is None:
                self.superseded = "another node"
                raise
            log.info("snapshot.renumbered", snapshot=str(manifest.id), reason=str(conflict))
            self._highest = max(self._highest, conflict.highest)
            manifest = replace(manifest, id=SnapshotId(self.identity, self._next_number()))
            self._listed = await self._list(manifest)
        number = manifest.id.number
        failpoints.reached("snapshot.committed")
        await trio.to_thread.run_sync(self._record, manifest.lineage, number)
        failpoints.reached("snapshot.recorded")
        self._highest = max(self._highest, number)
        self._renumber = False
        self.newest = manifest
        self._remember(manifest)
        self.news.announce()
        metrics.snapshot_taken(manifest.size)
        metrics.committed(TierName.RAM)
        metrics.durable(str(self.identity), TierName.RAM, manifest.created_ns)
        log.info(
            "snapshot.committed",
            identity=str(self.identity),
            snapshot=number,
            entries=len(manifest.entries),
            bytes=manifest.size,
            seconds=round(seconds, 3),
        )
        return manifest

    def _record(self, lineage: Lineage, number: int) -> None:
        write_record(self.layout, TreeRecord(lineage, number, epoch=self.epoch))

    async def list_newest(self) -> None:
        """What a restore was bringing is all here: the newest snapshot is as good as any in RAM."""
        if self.newest is not None and not self._listed:
            self._listed = await self._list(self.newest)

    async def _list(self, manifest: Manifest) -> bool:
        """Commits to the RAM tier, if it has all content.

        A snapshot some of whose content was given up, because the bucket has it, is not listed here: what a tier
        lists it can restore by itself. It is the newest all the same, and goes to the tiers that have the rest.
        A restart finds the tree, the marks that say what it lacks, and takes the snapshot again.
        """
        try:
            await self._ram.commit(manifest)
        except IncompleteSnapshot:
            given_up = set((await trio.to_thread.run_sync(remote_files, self.layout)).values())
            if not await self._ram.missing(manifest.blobs) <= given_up:
                raise
            log.info("snapshot.not_listed", snapshot=str(manifest.id), reason="content of it is elsewhere only")
            return False
        return True

    async def wait_until_on(self, tier: TierName, number: int, copies: int) -> None:
        """Returns when a snapshot, or a newer one, is on a tier. It is brought to the bucket then, due or not."""
        if tier is TierName.BUCKET and number > self.demanded:
            self.demanded = number
            self.news.announce()
        version = self.news.version
        while self.durable(tier, copies) < number:
            version = await self.news.wait_beyond(version)


async def final_snapshot(volume: Volume) -> None:
    """Catches up with the tree after its last writer has gone; what fails is tried again by the volume itself.

    Files that somebody still has open or mapped, of which nobody tells when that ends, are waited for a moment.
    """
    if volume.has_tree and volume.is_dirty:
        with trio.move_on_after(Deadline.UNMOUNT):
            patient_until = trio.current_time() + Deadline.HOLD
            try:
                await volume.take_snapshot()
                while not volume.is_settled and trio.current_time() < patient_until:
                    await trio.sleep(_LOOK_SECONDS)
                    await volume.take_snapshot()
            except (FuseTierError, OSError) as error:
                log.warning("snapshot.postponed", identity=str(volume.identity), reason=str(error))
