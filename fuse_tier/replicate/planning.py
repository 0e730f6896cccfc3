"""What a restore of a job would have to bring now, or if some nodes were gone: the input of ``plan.py``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Domain, Member
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.plan import Plan, Wanted, plan
from fuse_tier.tiers.ram import RamTier


@dataclass(frozen=True, slots=True)
class Part:
    """A snapshot that is of use to a rank: its own, or that of one that holds the same state."""

    snapshot: SnapshotId
    size: int
    is_in_bucket: bool
    taker: Identity


class Planner:
    """Of one node, which asks as for a restore."""

    def __init__(self, membership: Membership, ram: RamTier) -> None:
        self._membership = membership
        self._ram = ram

    async def plan(self, parts: Iterable[Part], without: Collection[str]) -> Plan:
        """As if the nodes of ``without`` were gone. A rank stays where it is mounted; of others nobody knows where
        they will come, so that each gets a node of its own, with nothing. Of several parts for one rank the first is
        taken that somebody has.
        """
        own = self._membership.own()
        alive = [one for one in (own, *self._membership.members()) if one.alive and one.node not in without]
        domains = {one.node: one.domain for one in alive}
        wanted: dict[Identity, Wanted] = {}
        for part in parts:
            before = wanted.get(part.taker)
            if before is not None and (before.holders or before.is_in_bucket):
                continue
            place = next((one for one in alive if part.taker in one.mounted), None)
            holders = {one: domains[one] for one in await self._holders(part.snapshot, own) if one in domains}
            if before is None or holders or part.is_in_bucket:
                wanted[part.taker] = Wanted(
                    part.snapshot,
                    part.size,
                    place.node if place else f"another node ({part.taker.replica})",
                    place.domain if place else Domain(),
                    holders,
                    part.is_in_bucket,
                    part.taker,
                )
        return plan(wanted.values())

    async def _holders(self, snapshot: SnapshotId, own: Member) -> list[str]:
        found = [own.node] if snapshot in await self._ram.snapshots(snapshot.identity) else []
        location = await self._membership.locate(snapshot.identity)
        return found + [member.node for member, numbers in location.holders if snapshot.number in numbers]
