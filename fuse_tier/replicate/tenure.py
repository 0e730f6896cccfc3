"""Whose a live tree is: under which lineage and epoch this node has it, and whether another has gone on with it.

What has to outlive the worker is in the tree's record (record.py), which is replaced at each change.
"""

from __future__ import annotations

import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.manifest import Lineage
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.replicate.numbering import Numbering
from fuse_tier.replicate.record import TreeRecord, write_record
from fuse_tier.restarts import Resumption


class Tenure:
    """Of one volume's live tree. ``number``, below, is that of its newest snapshot; 0: there is none."""

    def __init__(self, identity: Identity, layout: VolumeLayout) -> None:
        self.numbering = Numbering()
        self.is_to_be_renumbered = False
        """Whether the newest snapshot is about to be taken again, under a number that counts as the newest.

        Until then nobody takes a copy of it who has one that was newer.
        """
        self.resumption: Resumption | None = None  # from what the tree has gone on, with the other ranks of its job
        self.is_at_work = False
        """Whether its job goes on with it: since it joined a restart, until it ends or begins again."""
        self.is_tentative = False
        """Whether the tree is of a step that was chosen for all ranks, and has not been joined."""
        self.user = ""  # who has it mounted, or had it last, for people
        self.superseded = ""  # who else goes on with this volume, so that this tree must not; empty: nobody
        self._identity = identity
        self._layout = layout
        self._lineage: Lineage | None = None

    @property
    def lineage(self) -> Lineage:
        """Of the live tree. Raises FuseTierError when there is none."""
        if self._lineage is None:
            raise FuseTierError(f"{self._identity} has no files on this node: mount it first")
        return self._lineage

    @property
    def has_tree(self) -> bool:
        """Whether there is a live tree."""
        return self._lineage is not None

    def load(self, record: TreeRecord | None) -> None:
        """What an earlier worker recorded, if there is a tree that counts."""
        self._lineage = record.lineage if record else None
        if record is not None:
            self.numbering.heard_of(record.number)
            self.numbering.own(record.epoch)
            self.superseded, self.resumption, self.user = record.superseded, record.resumption, record.user

    def begin(
        self, lineage: Lineage, number: int, highest: int, epoch: int, *, anew: bool, is_tentative: bool = False
    ) -> None:
        """The tree has been made anew, from a snapshot or empty. ``anew``: it has to count as newer than it was."""
        self.superseded, self.resumption, self._lineage = "", None, lineage
        self.is_tentative = is_tentative
        self.numbering.heard_of(highest, number)
        # Going back to an older state is a new state: it has to be the newest wherever it is looked for.
        self.is_to_be_renumbered = bool(number) and (anew or number < self.numbering.highest)
        self._own(epoch, number)

    def resume(self, lineage: Lineage, number: int, highest: int, epoch: int, *, anew: bool) -> bool:
        """The tree goes on as it is, under another lineage perhaps. Whether that makes another snapshot of it."""
        self.numbering.heard_of(highest)
        lineage = lineage.as_declared(self._lineage)
        differs = lineage != self._lineage or anew
        self._lineage = lineage
        self.is_to_be_renumbered = self.is_to_be_renumbered or anew
        self._own(epoch, number)
        return differs

    async def renew(self, number: int, epoch: int) -> bool:
        """This node goes on with the tree. Whether it is under another, later epoch than before."""
        if epoch <= self.numbering.epoch or not self.has_tree:
            return False
        self.is_to_be_renumbered = self.is_to_be_renumbered or bool(number)
        await trio.to_thread.run_sync(self._own, epoch, number)
        return True

    async def declare(self, groups: int, rank: int, number: int) -> None:
        """The job says that so many groups of its ranks hold the same state, and which rank has the tree."""
        lineage = self.lineage.sharing(groups, rank)
        if lineage != self._lineage:
            self._lineage = lineage
            await trio.to_thread.run_sync(self.record, number)

    async def went_on_from(self, resumption: Resumption, number: int) -> None:
        """The tree goes on from a step, as those of all ranks of its job do."""
        self.resumption, self.is_tentative, self.is_at_work = resumption, False, True
        await trio.to_thread.run_sync(self.record, number)

    async def succeeded(self, by: str) -> None:
        """Another node goes on with the volume."""
        self.superseded = by
        await trio.to_thread.run_sync(self.record, self.numbering.highest)

    def forget(self) -> None:
        """There is no tree any more."""
        self._lineage, self.superseded, self.resumption, self.is_tentative = None, "", None, False

    def record(self, number: int) -> None:
        """Replaces the record at once. Raises OSError."""
        record = TreeRecord(
            self.lineage,
            number,
            self.superseded,
            self.numbering.epoch,
            self.resumption,
            self.user,
            self.is_tentative,
        )
        write_record(self._layout, record)

    def _own(self, epoch: int, number: int) -> None:
        self.numbering.own(epoch)
        self.record(number)
