"""What a volume's tree is made of before it is mounted.

Its newest snapshot, or one that is named; or, with all other ranks of its job, the one of the step that was chosen
for all of them (``coordinate/choosing.py``). Then nothing starts before it has said so: whoever is told that the step
was chosen again begins once more. What stood in the tree beyond it stays in the list of snapshots, set aside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from fuse_tier.epochs import epoch_of
from fuse_tier.errors import MountError
from fuse_tier.identity import Identity
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.agreeing import Agreed, Agreeing
from fuse_tier.replicate.choice import Chooser, Chosen
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.restored import Restored
from fuse_tier.replicate.settling import final_snapshot
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.succession import was_left
from fuse_tier.replicate.volume import Volume
from fuse_tier.restarts import Verdict
from fuse_tier.tiers.base import TierName

log = structlog.get_logger(__name__)

Claim = Callable[[Identity, int], Awaitable[int]]
"""Claims an identity under an epoch above another one."""


@dataclass(frozen=True, slots=True)
class MountOrder:
    """What is to be mounted where. ``snapshot`` 0 means the newest of the run."""

    identity: Identity
    lineage: Lineage
    mountpoint: str
    snapshot: int = 0
    read_only: bool = False
    version: str = ""  # a complete checkpoint in the bucket, rather than the newest state
    is_consistent: bool = False  # from the same step as all other ranks of the job
    step: int | None = None  # which all of them go back to
    user: str = ""  # who gets it, for people
    of_any_shape: bool = False  # its own newest files, whatever shape the job had when they were saved

    @property
    def goes_with_others(self) -> bool:
        """Whether the job's ranks have to agree; who names a snapshot or a version has said what it wants."""
        return self.is_consistent and not self.snapshot and not self.version


class Preparing:
    """Makes trees ready on one node."""

    def __init__(self, chooser: Chooser, restorer: Restorer, membership: Membership, agreeing: Agreeing) -> None:
        self._chooser = chooser
        self._restorer = restorer
        self._membership = membership
        self._agreeing = agreeing

    async def prepare(
        self, volume: Volume, order: MountOrder, report: Report, epoch: int, claim: Claim
    ) -> Restored | None:
        """What was restored; None when the tree goes on as it is, or is begun.

        Raises what the parts raise; the tree is then what it was, or a whole other one, and not to be mounted.
        """
        if order.goes_with_others:
            return await self._with_others(volume, order, report, epoch, claim)
        report.begin("looking for snapshots")
        await _leave_nothing_unsaved(volume)
        lineage = replace(order.lineage, world_size=0, topology="") if order.of_any_shape else order.lineage
        chosen = await self._chooser.choose(
            order.identity, lineage, order.snapshot, order.version, known=volume.newest
        )
        named = bool(order.snapshot or chosen.is_forced)
        is_current = not named and self._restorer.is_current(volume, order.lineage, chosen)
        volume.tenure.resumption = None
        return await self._make(volume, order, chosen, report, epoch, claim, is_current=is_current)

    # ---- with all other ranks ----

    async def _with_others(
        self, volume: Volume, order: MountOrder, report: Report, epoch: int, claim: Claim
    ) -> Restored | None:
        async def save() -> None:
            await _leave_nothing_unsaved(volume)

        async def follow(agreed: Agreed) -> Restored | None:
            restored = await self._follow(volume, order, agreed.verdict, report, epoch, claim)
            if restored is not None:
                volume.backup = agreed.backup if restored.is_from_bucket else ""
            return restored

        return await self._agreeing.together(volume, order.lineage, report, save, follow, step=order.step)

    async def _follow(
        self, volume: Volume, order: MountOrder, verdict: Verdict, report: Report, epoch: int, claim: Claim
    ) -> Restored | None:
        identity = order.identity
        if verdict.others:
            log.info("restart.others_mounted", identity=str(identity), step=verdict.step, replicas=verdict.others)
        if not verdict.restart:
            volume.tenure.resumption = None
        if not verdict.restart or not verdict.number:
            chosen = await self._chooser.choose(identity, order.lineage, known=volume.newest)
            if verdict.restart:
                chosen = Chosen(None, (), chosen.highest)
            is_current = self._restorer.is_current(volume, order.lineage, chosen)
            if verdict.restart:
                is_current = is_current and volume.newest is None
            joins = bool(verdict.restart)
            return await self._make(volume, order, chosen, report, epoch, claim, is_current=is_current, joins=joins)
        chosen = await self._chooser.choose(
            identity, order.lineage, verdict.number, known=volume.newest, step=verdict.step
        )
        newest = volume.newest
        is_current = (
            volume.has_tree
            and not volume.tenure.superseded
            and not volume.is_dirty
            and newest is not None
            and newest.id.number == verdict.number
            and not chosen.is_part
        )
        return await self._make(
            volume, order, chosen, report, epoch, claim, is_current=is_current, whole_only=True, joins=True
        )

    # ---- the tree ----

    async def _make(
        self,
        volume: Volume,
        order: MountOrder,
        chosen: Chosen,
        report: Report,
        epoch: int,
        claim: Claim,
        *,
        is_current: bool,
        whole_only: bool = False,
        joins: bool = False,
    ) -> Restored | None:
        highest = epoch_of(max(chosen.highest, volume.tenure.numbering.highest))
        if highest >= epoch:  # of a bucket that another cluster uses, whose clock is ahead
            epoch = await claim(order.identity, highest)
        membership = self._membership
        left = was_left(order.identity, chosen.manifest, membership.own(), membership.members())
        if is_current:
            volume.resume(order.lineage, chosen.highest, epoch, anew=left)
            _note_bucket(volume, chosen)
            log.info("volume.resumed", identity=str(order.identity), snapshot=volume.tenure.numbering.highest)
            return None
        if volume.tenure.superseded:
            log.warning("volume.fork_replaced", identity=str(order.identity), by=volume.tenure.superseded)
        elif volume.has_tree and volume.is_dirty:
            raise MountError(
                f"the files of {order.identity} here have changes that are in no snapshot yet, and would be "
                "replaced: the log says why none can be taken (snapshot.postponed); nothing was changed"
            )
        if chosen.manifest is not None:
            report.begin(f"restoring {chosen.manifest.id} from {chosen.places[0].place}", chosen.manifest.size)
        newest, number = volume.newest, chosen.manifest.id.number if chosen.manifest is not None else 0
        goes_back = newest is not None and (newest.id.number > number or chosen.is_part)
        if order.goes_with_others and newest is not None and goes_back:
            log.warning("restart.set_aside", snapshot=str(newest.id), restored=number)
        restored = await self._restorer.into_volume(
            volume,
            chosen,
            order.lineage,
            report.moved,
            epoch=epoch,
            anew=left,
            whole_only=whole_only,
            is_tentative=joins,
        )
        _note_bucket(volume, chosen)
        return restored


async def _leave_nothing_unsaved(volume: Volume) -> None:
    if volume.has_tree and volume.is_dirty:
        await final_snapshot(volume)


def _note_bucket(volume: Volume, chosen: Chosen) -> None:
    """What the bucket was seen to list need not be brought there: no node asks it anything at a mount."""
    if chosen.manifest is not None and chosen.manifest == volume.newest:
        for place in chosen.places:
            if place.name is TierName.BUCKET:
                volume.copies.stored(TierName.BUCKET, place.place, chosen.manifest.id.number)
