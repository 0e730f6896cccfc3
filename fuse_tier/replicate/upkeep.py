"""Giving up what was superseded on the RAM tier, and collecting what it leaves.

Which snapshots go is decided in retention.py; this carries it out, for every volume that the RAM tier lists,
replicas included. In the bucket the steward does so for all (stewardship.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.checkpoints import Saved
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.replicate.aside import set_aside, stays_for_job
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.knowledge import Knowledge
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.retention import Keep, plan_retention
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import TierName

log = structlog.get_logger(__name__)

_SETTLE_SECONDS = 1.0
_RAM_GRACE_SECONDS = 1.0  # what snapshots that are being made or received need is spared by the tier itself
_LOOK_EVERY_SECONDS = 30.0
_ROOMY_PART = 0.5  # of the RAM tier is free
_SHORT_SECONDS = 0.1  # instead of the settle time and the grace, when less is


class Upkeep:
    """Keeps the RAM tier of one node from filling up with the past."""

    def __init__(
        self, places: Places, knowledge: Knowledge, find: Callable[[Identity], Volume | None], keep: int
    ) -> None:
        self._places = places
        self._find = find
        self._keep = Keep(keep)
        self._knowledge = knowledge
        self.wake = Broadcast()  # announced when a snapshot was committed to the RAM tier, by whomever

    async def run(self) -> None:
        """Runs until cancelled."""
        seen = -1
        while True:
            with trio.move_on_after(_LOOK_EVERY_SECONDS):
                await self.wake.wait_beyond(seen)
            await trio.sleep(_SETTLE_SECONDS if self._is_roomy() else _SHORT_SECONDS)
            seen = self.wake.version
            try:
                await self._tidy_ram()
            except (FuseTierError, OSError) as error:
                metrics.error("retention")
                log.warning("retention.postponed", place=self._places.ram.place, reason=str(error))

    def _is_roomy(self) -> bool:
        """Whether what was superseded may stay a moment longer: going through the tier has its price, too."""
        ram = self._places.ram
        return ram.free_bytes() > ram.capacity_bytes() * _ROOMY_PART

    async def _tidy_ram(self) -> None:
        listed: dict[Identity, list[int]] = {}
        for snapshot in await self._places.ram.snapshots():
            listed.setdefault(snapshot.identity, []).append(snapshot.number)
        for identity, numbers in listed.items():
            volume = self._find(identity)
            elsewhere: set[int] = set()
            in_use: set[int] = set()
            if volume is not None:
                elsewhere = {
                    *volume.copies.held(TierName.PEER).values(),
                    *volume.copies.held(TierName.BUCKET).values(),
                }
                in_use = volume.in_use.keys() | volume.sending.numbers
            known = await self._knowledge.of(SnapshotId(identity, number) for number in numbers)
            saved = {snapshot.number: one for snapshot, one in known.items()}
            needed, aside = self._for_job(identity, saved)
            going = plan_retention(
                saved, self._keep, durable_elsewhere=elsewhere, in_use=in_use, needed=needed, aside=aside
            )
            await self._drop(identity, going)
        failpoints.reached("retention.collecting")
        await self._places.ram.collect(_RAM_GRACE_SECONDS if self._is_roomy() else _SHORT_SECONDS)

    def _for_job(
        self, identity: Identity, listed: Mapping[int, Saved | None]
    ) -> tuple[Collection[int], Collection[int]]:
        """What stays for the other ranks of the volume's job (everything, while that is not known); what is aside."""
        several = [saved for saved in listed.values() if saved is not None and saved.lineage.world_size > 1]
        if not several or not self._places.membership.agrees_on_steps:
            return (), ()
        volume = self._find(identity)
        resumption = volume.tenure.resumption if volume is not None else None
        needed, aside = self._places.membership.needed(identity), set_aside(several, resumption)
        return (listed.keys() if needed is None else stays_for_job(several, needed, resumption)), aside.keys()

    async def _drop(self, identity: Identity, numbers: tuple[int, ...]) -> None:
        ram = self._places.ram
        for number in numbers:
            await ram.drop(SnapshotId(identity, number))
            failpoints.reached("retention.dropped")
            log.info("snapshot.dropped", identity=str(identity), snapshot=number, place=ram.place)
