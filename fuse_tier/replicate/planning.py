"""What a restore of a job would have to bring now, or if some nodes were gone: the input of ``plan.py``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fuse_tier.identity import SnapshotId
from fuse_tier.members import Domain, Member
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.plan import Plan, Wanted, plan
from fuse_tier.tiers.ram import RamTier


@dataclass(frozen=True, slots=True)
class Part:
    """A snapshot of one rank."""

    snapshot: SnapshotId
    size: int
    is_in_bucket: bool


class Planner:
    """Of one node, which asks as for a restore."""

    def __init__(self, membership: Membership, ram: RamTier) -> None:
        self._membership = membership
        self._ram = ram

    async def plan(self, parts: Iterable[Part], without: Collection[str]) -> Plan:
        """As if the nodes of ``without`` were gone. A rank stays where it is mounted; of others nobody knows where
        they will come, so that each gets a node of its own, with nothing.
        """
        own = self._membership.own()
        alive = [one for one in (own, *self._membership.members()) if one.alive and one.node not in without]
        domains = {one.node: one.domain for one in alive}
        wanted = []
        for part in parts:
            identity = part.snapshot.identity
            place = next((one for one in alive if identity in one.mounted), None)
            wanted.append(
                Wanted(
                    part.snapshot,
                    part.size,
                    place.node if place else f"another node ({identity.replica})",
                    place.domain if place else Domain(),
                    {one: domains[one] for one in await self._holders(part.snapshot, own) if one in domains},
                    part.is_in_bucket,
                )
            )
        return plan(wanted)

    async def _holders(self, snapshot: SnapshotId, own: Member) -> list[str]:
        found = [own.node] if snapshot in await self._ram.snapshots(snapshot.identity) else []
        location = await self._membership.locate(snapshot.identity)
        return found + [member.node for member, numbers in location.holders if snapshot.number in numbers]
