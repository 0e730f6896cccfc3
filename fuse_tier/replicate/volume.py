"""One local volume as its node's worker sees it: its live tree and its snapshots.

It takes a snapshot when it is told to (settling.py says when), and tells everybody who waits. It copies nothing
(fanout.py; copies.py knows what was copied where) and restores nothing (restore.py). What it holds in memory is
read from the RAM tier at the start; a restart loses nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, SnapshotConflict
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage, Manifest
from fuse_tier.ram import lives
from fuse_tier.ram.arrival import coming_files
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.pins import Pins
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.copies import Copies
from fuse_tier.replicate.listing import is_worth_a_number, list_in_ram
from fuse_tier.replicate.numbering import Numbering
from fuse_tier.replicate.record import TreeRecord, read_record, write_record
from fuse_tier.replicate.snapshot import Gate, Quiescent, Snapshotter
from fuse_tier.restarts import Resumption
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

Retire = Callable[[dict[int, Blob]], Awaitable[list[int]]]
"""Marks those of these files that are not open (ram/remote.py), and gives their inode numbers."""

Arrange = Callable[[Collection[str], Collection[tuple[str, str]]], Awaitable[None]]
"""Moves names of the root away, and staged ones in (fs/arranging.py). Raises ChannelClosed, OSError."""


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
        self.mountpoint: str | None = None
        self.gate: Gate | None = Quiescent()  # None: mounted, but its daemon cannot be asked at present
        self.changes = Broadcast()  # of the live tree
        self.news = Broadcast()  # of snapshots, of where they are, and of mounting
        self.copies = Copies(identity, options.replicas, self.news)
        self.retire: Retire | None = None  # asks the mount's daemon
        self.arrange: Arrange | None = None  # likewise
        self.unreserved_bytes = 0  # memory that the job was the first to touch
        self.mounting = trio.Lock()
        self.evicting = trio.Lock()
        self.ending = trio.Lock()
        self.in_use: Counter[int] = Counter()
        self.demanded = 0  # the newest snapshot that somebody waits for in the bucket
        self._ram = ram
        self.options = options
        self._lineage: Lineage | None = None
        self.numbering = Numbering()
        self.still = trio.Lock()  # while it is held nobody takes a snapshot
        self.is_arranged = False  # steps are out of sight until a job is answered: that is no state to save
        self._snapshotter = Snapshotter(layout, self.layout, options.node, hashing, self.evicting)
        self._seen = -1
        self._renumber = False
        self.coming: Chosen | None = None  # what a restore is still bringing, and from whom
        self.is_at_work = False  # its job goes on with it: since it joined a restart, until it ends or begins again
        self.is_tentative = False  # the tree is of a step that was chosen for all ranks, and has not been joined
        self.resumption: Resumption | None = None  # from what the tree has gone on, with the other ranks of its job
        self.framework = ""  # of the job's order (protocol/); empty: it gave none
        self.backup = ""  # the complete checkpoint in the bucket from which the tree was made, if it was
        self.user = ""  # who has it mounted, or had it last, for people
        self.superseded = ""  # who else goes on with this volume, so that this tree must not; empty: nobody

    @property
    def newest(self) -> Manifest | None:
        """The newest snapshot of the live tree."""
        return self.copies.newest

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
    def is_to_be_renumbered(self) -> bool:
        """Whether the newest snapshot is about to be taken again, under a number that counts as the newest.

        Until then nobody takes a copy of it who has one that was newer.
        """
        return self._renumber

    @property
    def is_settled(self) -> bool:
        """Whether the last snapshot had every file that was closed: none was still written through a mapping."""
        return self._snapshotter.is_settled

    @property
    def is_dirty(self) -> bool:
        """Whether the tree has changed since the newest snapshot."""
        has_changed = self.changes.version > self._seen or not self._snapshotter.is_settled
        return self.has_tree and not self.is_tentative and has_changed

    @property
    def seen(self) -> int:
        """The version of the changes that the newest snapshot has."""
        return self._seen

    def is_remote(self, inode: int) -> bool:
        """Whether a file's content is not here yet."""
        return os.path.lexists(os.path.join(self.layout.remote, str(inode)))

    def make_directories(self) -> None:
        """Everything but the tree."""
        for path in (self.layout.root, self.layout.pins, self.layout.remote):
            os.makedirs(path, mode=0o700, exist_ok=True)

    def _recover(self) -> TreeRecord | None:
        self.make_directories()
        self.is_arranged = os.path.isdir(self.layout.staged)
        self.pins.recover()
        record = read_record(self.layout) if os.path.isdir(self.layout.tree) else None
        return None if record is not None and record.is_tentative else record

    async def load(self) -> None:
        """Reads what the RAM tier has of this volume."""
        record = await trio.to_thread.run_sync(self._recover)
        numbers = [snapshot.number for snapshot in await self._ram.snapshots(self.identity)]
        self.numbering.heard_of(0, *numbers)
        self._lineage = record.lineage if record else None
        if record:
            self.coming = Chosen(None) if await trio.to_thread.run_sync(coming_files, self.layout) else None
            self.numbering.heard_of(record.number)
            self.numbering.own(record.epoch)
            self.superseded, self.resumption, self.user = record.superseded, record.resumption, record.user
            own = [number for number in numbers if number <= record.number]
            newest = await self._load_newest(own)
            if newest is not None:
                self.copies.follow(newest)
        self.changes.announce()

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
        is_part: bool = False,
        is_tentative: bool = False,
    ) -> None:
        """The live tree has been made anew: from a snapshot, or empty; it is owned under ``epoch`` from now on.

        ``anew``: what was restored has to count as newer than what others may have, at once. So has a part of a
        snapshot, which nobody lists. What is tentative is no state of the job before ``went_on_from``: no snapshot
        is taken of it, which would say that the job has gone back.
        One that could not be restored whole is not given up: its lost files stand in no later one.
        """
        self.in_use.clear()
        self.superseded, self.resumption = "", None
        self.coming, self.is_tentative = coming, is_tentative
        self.copies.begin_again(restored, is_listed=coming is None and not is_part)
        if restored is not None and not is_whole:
            self.in_use[restored.id.number] += 1
        self._lineage = lineage
        self.numbering.heard_of(highest, restored.id.number if restored else 0)
        # Going back to an older state is a new state: it has to be the newest wherever it is looked for.
        is_older = restored is not None and restored.id.number < self.numbering.highest
        self._renumber = restored is not None and (anew or is_part or is_older)
        self._own(epoch)
        self.changes.announce()
        self.news.announce()

    def forget_tree(self) -> None:
        """There is no live tree any more."""
        self._lineage, self.superseded, self.coming, self.resumption = None, "", None, None
        self.is_tentative = False
        self.copies.begin_again(None, is_listed=True)
        self.news.announce()

    def resume(self, lineage: Lineage, highest: int, epoch: int, *, anew: bool) -> None:
        """The live tree goes on as it is, under the lineage of who mounts it now. See ``began``."""
        self.numbering.heard_of(highest)
        if lineage != self._lineage or anew:
            self._lineage = lineage
            self._renumber = self._renumber or anew
            self.changes.announce()
        self._own(epoch)

    async def renew(self, epoch: int) -> None:
        """This node goes on with a volume that it has mounted, under another epoch if that is a later one."""
        if epoch > self.numbering.epoch and self.has_tree:
            self._renumber = self._renumber or self.newest is not None
            await trio.to_thread.run_sync(self._own, epoch)
            self.changes.announce()

    def _own(self, epoch: int) -> None:
        self.numbering.own(epoch)
        self._record(self.lineage, self.newest.id.number if self.newest else 0)

    async def went_on_from(self, resumption: Resumption) -> None:
        """The tree goes on from a step, as those of all ranks of its job do."""
        self.resumption, self.is_tentative, self.is_at_work = resumption, False, True
        await trio.to_thread.run_sync(self._record, self.lineage, self.newest.id.number if self.newest else 0)
        if self.mountpoint is None:
            await trio.to_thread.run_sync(lives.begin, self.layout)
        self.news.announce()

    def _next_id(self) -> SnapshotId:
        try:
            return SnapshotId(self.identity, self.numbering.next())
        except FuseTierError:
            if self.mountpoint is None:  # nobody asks whose it is: somebody else has gone on with it
                self.superseded = "another node"
            self.news.announce()
            raise

    def exists_elsewhere(self, number: int) -> None:
        """Somebody has a snapshot of this number: ours must have another."""
        self.numbering.heard_of(number)
        if self.newest is not None and number >= self.newest.id.number:
            self._renumber = True
            self.changes.announce()

    def state(self) -> str:
        """For people: ``dirty``, or the tiers that have the whole tree."""
        return "dirty" if self.is_dirty or self.newest is None else self.copies.state()

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

    async def take_snapshot(self) -> Manifest | None:
        """The newest snapshot, after one was taken of the tree as it is now, if it differs.

        None when there never was anything in the tree: emptiness is not worth a number, and must not push
        out what an earlier run left. Raises FuseTierError (no tree, or it changes for too long, or the daemon is
        away), OSError (no room).
        """
        while True:
            async with self.still:
                if not self.is_arranged:
                    return await self.take_snapshot_in_hand()
            await self.news.wait_beyond(self.news.version)

    async def take_snapshot_in_hand(self) -> Manifest | None:
        """As ``take_snapshot``, for who holds ``still``."""
        if self.is_tentative:
            return self.newest
        if self.superseded:
            raise FuseTierError(
                f"{self.identity} was taken over by {self.superseded}, and no more snapshots are taken here: "
                "unmount it; a new mount continues with the files of there"
            )
        gate = await self._wait_for_gate()
        with self._ram.unfinished():
            return await self._take_snapshot(gate)

    async def _take_snapshot(self, gate: Gate) -> Manifest | None:
        version, previous, started = self.changes.version, self.newest, trio.current_time()
        snapshot = self._next_id()
        manifest = await self._snapshotter.take(snapshot, self.lineage, gate, previous)
        is_other = previous is not None and self._renumber
        if is_other or await trio.to_thread.run_sync(is_worth_a_number, self.layout, previous, manifest):
            previous = await self._commit(manifest, trio.current_time() - started)
        self._seen = version
        return previous

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
            self.copies.is_listed = await list_in_ram(self._ram, self.layout, manifest)
        except SnapshotConflict as conflict:
            # A replica that came from elsewhere has the number: take one above it, if the volume is still ours.
            if self.mountpoint is None:
                self.superseded = "another node"
                raise
            log.info("snapshot.renumbered", snapshot=str(manifest.id), reason=str(conflict))
            self.numbering.heard_of(conflict.highest)
            manifest = replace(manifest, id=self._next_id())
            self.copies.is_listed = await list_in_ram(self._ram, self.layout, manifest)
        number = manifest.id.number
        failpoints.reached("snapshot.committed")
        await trio.to_thread.run_sync(self._record, manifest.lineage, number)
        failpoints.reached("snapshot.recorded")
        self.numbering.heard_of(number)
        self._renumber = False
        self.copies.follow(manifest)
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
        record = TreeRecord(
            lineage, number, self.superseded, self.numbering.epoch, self.resumption, self.user, self.is_tentative
        )
        write_record(self.layout, record)

    async def list_newest(self) -> None:
        """What a restore was bringing is all here: the newest snapshot is as good as any in RAM."""
        if self.newest is not None and not self.copies.is_listed and not self.is_to_be_renumbered:
            self.copies.is_listed = await list_in_ram(self._ram, self.layout, self.newest)

    def demand(self, number: int) -> None:
        """A snapshot, or a newer one, is to be brought to the bucket now, due or not."""
        if number > self.demanded:
            self.demanded = number
            self.news.announce()

    async def wait_until_on(self, tier: TierName, number: int, copies: int) -> None:
        """Returns when a snapshot, or a newer one, is on a tier. It is brought to the bucket then, due or not.

        In RAM it is when nothing of the tree is coming any more.
        """
        if tier is TierName.BUCKET:
            self.demand(number)
        version = self.news.version
        while self.copies.durable(tier, copies) < number or (tier is TierName.RAM and self.coming is not None):
            version = await self.news.wait_beyond(version)
