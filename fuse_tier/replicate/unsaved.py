"""What only nodes have that leave: asked of the nodes themselves.

One that has died is heard of until its lease ends, and what it told of itself still stands; a node that leaves may be
gone by then. So nothing counts that is not answered now: neither copies, nor that somebody has a volume mounted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Member
from fuse_tier.parallel import for_each
from fuse_tier.replicate.places import Places

log = structlog.get_logger(__name__)

_AT_ONCE = 16

Told = Mapping[str, Mapping[Identity, int] | None]
"""By node, the newest that it says it lists of each volume; None: it did not answer."""


class Unsaved:
    """As one drain finds it. ``silent`` are the nodes that did not answer when it looked last."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._saved: set[SnapshotId] = set()
        self.silent: frozenset[str] = frozenset()

    async def among(self, newest: Iterable[SnapshotId]) -> set[SnapshotId]:
        """Those that no other node has which stays, nor any a newer one.

        Owners are asked first: they have most of what is copied to here.
        """
        left = set(newest) - self._saved
        told: dict[str, Mapping[Identity, int] | None] = {}
        for members in (self._owners, self._holders):
            if left:
                told |= await self._ask([one for one in await members(left) if one.node not in told])
                saved = {snapshot for snapshot in left if self._is_saved(snapshot, told)}
                self._saved |= saved
                left -= saved
        self.silent = frozenset(node for node, listed in told.items() if listed is None)
        return left

    async def _owners(self, snapshots: Collection[SnapshotId]) -> list[Member]:
        await trio.lowlevel.checkpoint()
        identities = {snapshot.identity for snapshot in snapshots}
        members = self._places.membership.members()
        return [member for member in members if member.alive and not identities.isdisjoint(member.mounted)]

    async def _holders(self, snapshots: Collection[SnapshotId]) -> list[Member]:
        found: dict[str, Member] = {}

        async def locate(snapshot: SnapshotId) -> None:
            location = await self._places.membership.locate(snapshot.identity)
            for member, numbers in location.holders:
                if member.alive and numbers[-1] >= snapshot.number:
                    found[member.node] = member

        await for_each(snapshots, locate, _AT_ONCE)
        return list(found.values())

    async def _ask(self, members: Collection[Member]) -> Told:
        told: dict[str, Mapping[Identity, int] | None] = {member.node: None for member in members}

        async def ask(member: Member) -> None:
            place = self._places.peer(member)
            try:
                with trio.move_on_after(Deadline.CONTROL_CALL):
                    # Ascending, so that of each volume the newest stays.
                    told[member.node] = {one.identity: one.number for one in await place.snapshots()}
            except FuseTierError as error:
                log.info("drain.node_silent", place=place.place, reason=str(error))

        await for_each(members, ask, _AT_ONCE)
        return told

    def _is_saved(self, snapshot: SnapshotId, told: Told) -> bool:
        staying = {member.node for member in self._places.membership.members() if member.stays}
        newest = {node: listed.get(snapshot.identity, 0) for node, listed in told.items() if listed is not None}
        return any(
            number > snapshot.number or (number == snapshot.number and node in staying)
            for node, number in newest.items()
        )
