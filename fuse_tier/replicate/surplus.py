"""Copies where they do not belong any more: of a node that was asked while another was away, or that has moved.

They are given up when the newest snapshot is verified wherever it belongs, and not at once: a node that is counted
out for a moment, and back a moment later, shall find its copy where it was. Only who has the volume mounted decides.
"""

from __future__ import annotations

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import SnapshotId
from fuse_tier.members import Member
from fuse_tier.replicate.fanout import Fanout
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import TierName

log = structlog.get_logger(__name__)

LOOK_EVERY_SECONDS = 30.0  # and what is found a second time goes


class Surplus:
    """Gives up what is too much of one node's volumes."""

    def __init__(self, fanout: Fanout, every_seconds: float = LOOK_EVERY_SECONDS) -> None:
        self._fanout = fanout
        self._every_seconds = every_seconds

    async def keep_down(self, volume: Volume) -> None:
        """Looks until cancelled."""
        seen: set[str] = set()
        while True:
            await trio.sleep(self._every_seconds)
            try:
                found = await self._find(volume)
            except FuseTierError as error:
                log.debug("surplus.not_known", identity=str(volume.identity), reason=str(error))
                continue
            for member, numbers in found.items():
                if member.node in seen:
                    await self._drop(volume, member, numbers)
            seen = {member.node for member in found}

    async def _find(self, volume: Volume) -> dict[Member, tuple[int, ...]]:
        """Who has copies and shall have none; nobody while one is missing where it belongs."""
        membership = self._fanout.places.membership
        newest = volume.newest
        if newest is None or volume.identity not in membership.mounted():
            return {}
        chosen = await self._fanout.targets(volume, ())
        held = volume.copies.held(TierName.PEER)
        if not chosen or any(held.get(node, 0) < newest.id.number for node in chosen):
            return {}
        location = await membership.locate(volume.identity)
        if location.silent:
            return {}
        highest = max((numbers[-1] for member, numbers in location.holders if member.alive), default=0)
        if highest > newest.id.number:
            return {}  # what is here is not the newest: nothing of the rest is too much
        kept = {*chosen, *self._fanout.spared(volume)}
        return {
            member: tuple(number for number in numbers if number <= newest.id.number)
            for member, numbers in location.holders
            if member.alive and member.node not in kept and volume.identity not in member.mounted
        }

    async def _drop(self, volume: Volume, member: Member, numbers: tuple[int, ...]) -> None:
        tier = self._fanout.places.peer(member)
        volume.copies.lost(TierName.PEER, member.node)  # first: of a drop that nobody answers none can tell
        try:
            for number in numbers:
                await tier.drop(SnapshotId(volume.identity, number))
        except FuseTierError as error:
            metrics.error("surplus")
            log.info("surplus.postponed", identity=str(volume.identity), place=tier.place, reason=str(error))
            return
        log.info("surplus.dropped", identity=str(volume.identity), place=tier.place, snapshots=list(numbers))
