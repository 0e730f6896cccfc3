"""One local volume as its node's worker sees it: its live tree and its snapshots.

It has a snapshot taken when it is told to (taking.py; settling.py says when), and tells everybody who waits. Whose it
is, is in tenure.py. It copies nothing (fanout.py; copies.py knows what was copied where) and restores nothing
(restore.py). What it holds in memory is read from the RAM tier at the start; a restart loses nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage, Manifest
from fuse_tier.ram.arrival import coming_files
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import lost_files
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.copies import Copies
from fuse_tier.replicate.instant import Gate, Quiescent
from fuse_tier.replicate.listing import list_in_ram
from fuse_tier.replicate.lost import Lost
from fuse_tier.replicate.record import TreeRecord, read_record
from fuse_tier.replicate.sending import Sending
from fuse_tier.replicate.snapshot import Snapshotter
from fuse_tier.replicate.taking import Taking
from fuse_tier.replicate.tenure import Tenure
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
        self.options = options
        self.layout = layout.volume(identity)
        self.pins = Pins(layout, self.layout)
        self.mountpoint: str | None = None
        self.gate: Gate | None = Quiescent()  # None: mounted, but its daemon cannot be asked at present
        self.changes = Broadcast()  # of the live tree
        self.seen = -1  # the version of the changes that the newest snapshot has
        self.news = Broadcast()  # of snapshots, of where they are, and of mounting
        self.copies = Copies(identity, options.replicas, self.news)
        self.retire: Retire | None = None  # asks the mount's daemon
        self.arrange: Arrange | None = None  # likewise
        self.unreserved_bytes = 0  # memory that the job was the first to touch
        self.mounting = trio.Lock()
        self.evicting = trio.Lock()
        self.ending = trio.Lock()
        self.in_use: Counter[int] = Counter()
        self.sending = Sending()  # to peers
        self.demanded = 0  # the newest snapshot that somebody waits for in the bucket
        self.tenure = Tenure(identity, self.layout)
        self.still = trio.Lock()  # while it is held nobody takes a snapshot
        self.is_arranged = False  # steps are out of sight until a job is answered: that is no state to save
        self._ram = ram
        self.snapshotter = Snapshotter(layout, self.layout, options.node, hashing, self.evicting)
        self._taking = Taking(
            identity,
            ram,
            self.layout,
            self.snapshotter,
            self.tenure,
            self.copies,
            self.news,
            lambda: self.mountpoint is not None,
        )
        self.coming: Chosen | None = None  # what a restore is still bringing, and from whom
        self.lost: Lost | None = None  # what nobody had, and who may have it all the same
        self.framework = ""  # of the job's order (protocol/); empty: it gave none
        self.backup = ""  # the complete checkpoint in the bucket from which the tree was made, if it was

    @property
    def newest(self) -> Manifest | None:
        """The newest snapshot of the live tree."""
        return self.copies.newest

    @property
    def _number(self) -> int:
        return self.newest.id.number if self.newest else 0

    @property
    def lineage(self) -> Lineage:
        """Of the live tree. Raises FuseTierError when there is none."""
        return self.tenure.lineage

    @property
    def has_tree(self) -> bool:
        """Whether there is a live tree."""
        return self.tenure.has_tree

    @property
    def is_dirty(self) -> bool:
        """Whether the tree has changed since the newest snapshot."""
        has_changed = self.changes.version > self.seen or not self.snapshotter.is_settled
        return self.has_tree and not self.tenure.is_tentative and has_changed

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
        self.tenure.numbering.heard_of(0, *numbers)
        self.tenure.load(record)
        if record:
            self.coming = Chosen(None) if await trio.to_thread.run_sync(coming_files, self.layout) else None
            self.lost = Lost() if await trio.to_thread.run_sync(lost_files, self.layout) else None
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
        self.coming = coming
        self.lost = None if is_whole else Lost()
        self.copies.begin_again(restored, is_listed=coming is None and not is_part)
        if restored is not None and not is_whole:
            self.in_use[restored.id.number] += 1
        lineage = lineage.as_declared(restored.lineage if restored is not None else None)
        self.tenure.begin(lineage, self._number, highest, epoch, anew=anew or is_part, is_tentative=is_tentative)
        self.changes.announce()
        self.news.announce()

    def forget_tree(self) -> None:
        """There is no live tree any more."""
        self.tenure.forget()
        self.coming = self.lost = None
        self.copies.begin_again(None, is_listed=True)
        self.news.announce()

    def resume(self, lineage: Lineage, highest: int, epoch: int, *, anew: bool) -> None:
        """The live tree goes on as it is, under the lineage of who mounts it now. See ``began``."""
        if self.tenure.resume(lineage, self._number, highest, epoch, anew=anew):
            self.changes.announce()

    async def renew(self, epoch: int) -> None:
        """This node goes on with a volume that it has mounted, under another epoch if that is a later one."""
        if await self.tenure.renew(self._number, epoch):
            self.changes.announce()

    async def declare(self, groups: int, rank: int) -> None:
        """What is saved from now on is of a rank whose job says that so many groups of its ranks hold the same."""
        await self.tenure.declare(groups, rank, self._number)

    async def went_on_from(self, resumption: Resumption) -> None:
        """The tree goes on from a step, as those of all ranks of its job do."""
        await self.tenure.went_on_from(resumption, self._number)
        self.news.announce()

    def exists_elsewhere(self, number: int) -> None:
        """Somebody has a snapshot of this number: ours must have another."""
        self.tenure.numbering.heard_of(number)
        if self.newest is not None and number >= self.newest.id.number:
            self.tenure.is_to_be_renumbered = True
            self.changes.announce()

    def state(self) -> str:
        """For people: ``dirty``, or the tiers that have the whole tree."""
        return "dirty" if self.is_dirty or self.newest is None else self.copies.state()

    @contextmanager
    def using(self, number: int) -> Iterator[None]:
        """While a snapshot is being copied to the bucket it is not given up."""
        self.in_use[number] += 1
        try:
            yield
        finally:
            self.in_use[number] -= 1
            if self.in_use[number] <= 0:  # the tree was made anew meanwhile
                del self.in_use[number]

    async def take_snapshot(self, *, is_awaited: bool = False) -> Manifest | None:
        """The newest snapshot, after one was taken of the tree as it is now, if it differs.

        None when there never was anything in the tree: emptiness is not worth a number, and must not push
        out what an earlier run left. ``is_awaited``: somebody waits for it, and for that the job may be held sooner.
        Raises FuseTierError (no tree, or it changes for too long, or the daemon is away), OSError (no room).
        """
        while True:
            async with self.still:
                if not self.is_arranged:
                    return await self.take_snapshot_in_hand(is_awaited=is_awaited)
            await self.news.wait_beyond(self.news.version)

    async def take_snapshot_in_hand(self, *, is_awaited: bool = False) -> Manifest | None:
        """As ``take_snapshot``, for who holds ``still``."""
        if self.tenure.is_tentative:
            return self.newest
        if self.tenure.superseded:
            raise FuseTierError(
                f"{self.identity} was taken over by {self.tenure.superseded}, and no more snapshots are taken here: "
                "unmount it; a new mount continues with the files of there"
            )
        gate = await self._wait_for_gate()
        with self._ram.unfinished():
            version = self.changes.version
            newest = await self._taking.take(gate, is_awaited=is_awaited)
            self.seen = version
            return newest

    async def _wait_for_gate(self) -> Gate:
        with trio.move_on_after(Deadline.SUPERVISOR_CONNECT):
            while self.gate is None:
                await self.news.wait_beyond(self.news.version)
        if self.gate is None:
            raise FuseTierError(f"{self.identity}: its mount daemon is away; it is started again by itself")
        return self.gate

    async def list_newest(self) -> None:
        """What a restore was bringing is all here: the newest snapshot is as good as any in RAM."""
        if self.newest is not None and not self.copies.is_listed and not self.tenure.is_to_be_renumbered:
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
