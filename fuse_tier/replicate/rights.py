"""Which node may change what of a volume in another one's RAM tier: who has it mounted; and for copies, who had.

A node is whom its certificate names; without certificates nobody can be told from another, and all are trusted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import NotAuthorized, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Location, Member
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.rejections import Rejections


def nobody(identity: Identity) -> Collection[str]:
    """For nodes that know of nobody else."""
    return ()


async def nowhere(identity: Identity) -> Location:
    """For nodes that know of nobody else."""
    return Location()


class Rights:
    """As one node knows them. ``mounted_on`` are the live other nodes that have a volume mounted; ``locate`` tells
    who has which snapshots, and who had it under which epochs.
    """

    def __init__(
        self,
        own: Callable[[], Member],
        ram: RamTier,
        rejections: Rejections,
        mounted_on: Callable[[Identity], Collection[str]] = nobody,
        locate: Callable[[Identity], Awaitable[Location]] = nowhere,
    ) -> None:
        self._own = own
        self._ram = ram
        self._rejections = rejections
        self._mounted_on = mounted_on
        self._locate = locate

    def check_drop(self, snapshot: SnapshotId, caller: Caller) -> None:
        """Only the one node that has the volume mounted gives its snapshots up. Raises NotAuthorized."""
        if caller.node is None:
            return
        owners = self._owners(snapshot.identity)
        if owners != {caller.node}:
            known = f"{' and '.join(sorted(owners)) or 'nobody'} has its volume mounted"
            self._refuse(
                caller,
                f"{snapshot} is not given up for node {caller.node}: {known}, as far as node {self._own().node} was "
                "told, and only who has it mounted gives its snapshots up",
            )

    async def check_commit(self, snapshot: SnapshotId, caller: Caller) -> None:
        """Who has the volume mounted adds snapshots; while nobody has, who had it when they were taken; and anybody
        copies of what is known.

        What outranks all that others have would be restored next, and would have what is older given up: that a node
        cannot bring about behind the backs of the rest. Raises NotAuthorized, and TierUnavailable when nobody can
        tell now.
        """
        if caller.node is None:
            return
        owners = self._owners(snapshot.identity)
        if caller.node in owners or (not owners and not await self._is_news(snapshot)):
            return
        location = await self._located(snapshot)
        others = [numbers[-1] for member, numbers in location.holders if member.node != caller.node]
        if snapshot.number <= max([*others, *location.bucket], default=0):
            return
        if owners:
            self._refuse(
                caller,
                f"{snapshot} of {caller.node} is refused: {' and '.join(sorted(owners))} has the volume mounted by "
                "now, and what it saves counts",
            )
        owner = location.owners.get(snapshot.epoch, "another node")
        if owner == caller.node or snapshot.epoch < min(location.owners, default=snapshot.epoch + 1):
            return  # what was before the coordinator's memory nobody can tell
        self._refuse(
            caller,
            f"{snapshot} of {caller.node} is refused: nobody has the volume mounted, {owner} had it when this is "
            "said to have been taken, and no other node was heard to have this or a newer one: mount the volume "
            f"on {caller.node} to go on with it there",
        )

    async def _located(self, snapshot: SnapshotId) -> Location:
        with trio.move_on_after(Deadline.RIGHTS):
            return await self._locate(snapshot.identity)
        raise TierUnavailable(
            f"{snapshot} is not taken in now: nobody could tell within {Deadline.RIGHTS:g} s who had its volume, as "
            "while a coordinator starts; the copy is tried again by itself"
        )

    async def _is_news(self, snapshot: SnapshotId) -> bool:
        """Whether it is newer than all that this node holds itself."""
        listed = await self._ram.snapshots(snapshot.identity)
        return not listed or listed[-1].number < snapshot.number

    def _owners(self, identity: Identity) -> set[str]:
        own = self._own()
        return {*self._mounted_on(identity), *([own.node] if identity in own.mounted else [])}

    def _refuse(self, caller: Caller, reason: str) -> None:
        self._rejections.note("owner", caller.address, reason)
        raise NotAuthorized(reason)
