"""Volumes that nobody keeps: their node is gone, or came back empty, and no other has mounted them yet.

Of those that hold the newest snapshot of one, the first by name sees to it that the configured number of nodes do.
It never makes two of them do the same for long: each looks who else there is, and who is the first. A volume whose
node is alive and still has it is that node's to keep (fanout.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.errors import FuseTierError, SnapshotConflict
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.members import Location, Member
from fuse_tier.replicate.copying import Copier, Troubles
from fuse_tier.replicate.membership import mounted_on
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.targets import Targets
from fuse_tier.replicate.volume import Volume

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Copying:
    """A copy that is under way."""

    node: str
    instance: str
    scope: trio.CancelScope


class Orphans:
    """Looks after what this node holds for nodes that are gone."""

    def __init__(
        self,
        places: Places,
        copier: Copier,
        targets: Targets,
        find: Callable[[Identity], Volume | None],
        replicas: int,
    ) -> None:
        self._places = places
        self._copier = copier
        self._targets = targets
        self._find = find
        self._replicas = replicas
        self._troubles: dict[Identity, Troubles] = {}
        self._at_work: set[Identity] = set()
        self._copying: dict[Identity, _Copying] = {}

    async def run(self) -> None:
        """Looks until cancelled."""
        membership = self._places.membership
        async with trio.open_nursery() as nursery:
            while True:
                version = membership.version
                try:
                    await self.look(nursery)
                except OSError as error:
                    _tell_postponed(error)
                with trio.move_on_after(_LOOK_EVERY_SECONDS):
                    await membership.wait_changed(version)

    async def look(self, nursery: trio.Nursery) -> None:
        """Begins to have copied what is missing: each volume by itself, so that no slow copy holds up another volume,
        now or in a later round. Raises OSError.
        """
        newest: dict[Identity, SnapshotId] = {}
        for snapshot in await self._places.ram.snapshots():
            newest[snapshot.identity] = snapshot
        alive = {member.node: member.instance for member in self._places.membership.members() if member.alive}
        for identity, copying in self._copying.items():
            # Else it would hold its turn until a deadline says what is known already, or bring what nobody wants.
            if alive.get(copying.node) != copying.instance or self._is_kept(identity):
                copying.scope.cancel()
        self._troubles = {identity: self._troubles.get(identity, Troubles()) for identity in newest}
        for snapshot in newest.values():
            self._troubles[snapshot.identity].look_at(alive)
            if snapshot.identity not in self._at_work and not self._is_kept(snapshot.identity):
                self._at_work.add(snapshot.identity)
                nursery.start_soon(self._look_after_one, snapshot, self._troubles[snapshot.identity])

    async def _look_after_one(self, snapshot: SnapshotId, troubles: Troubles) -> None:
        """Survives its failures."""
        try:
            await self._look_after(snapshot, troubles)
        except (FuseTierError, OSError) as error:
            _tell_postponed(error, snapshot=str(snapshot))
        finally:
            self._at_work.discard(snapshot.identity)

    def _is_kept(self, identity: Identity) -> bool:
        """Whether it lives here, or somebody who is alive has it mounted."""
        volume = self._find(identity)
        membership = self._places.membership
        return (
            (volume is not None and ((volume.has_tree and not volume.tenure.superseded) or volume.mounting.locked()))
            or identity in membership.mounted()
            or bool(mounted_on(membership, identity))
        )

    async def _look_after(self, snapshot: SnapshotId, troubles: Troubles) -> None:
        manifest = await self._places.ram.manifest(snapshot)
        location = await self._places.membership.locate(snapshot.identity)
        holders = holders_of(location, snapshot.number)
        if location.silent:
            return  # one of them may have a newer one, or this: later
        if holders is None or manifest.node in holders:
            return
        own = self._places.membership.own().node
        if min([own, *holders]) != own or len(holders) + 1 >= self._replicas:
            return
        members = {member.node: member for member in self._places.membership.members() if member.alive}
        chosen = await self._targets.of(snapshot.identity, self._owner(manifest), troubles.refusing())
        lacking = [node for node in chosen if node in members and node not in holders]
        for node in lacking[: self._replicas - len(holders) - 1]:
            if self._is_kept(snapshot.identity):
                return  # by now
            log.info("orphan.kept", snapshot=str(snapshot), owner=manifest.node, copies=len(holders) + 1, to=node)
            await self._copy(manifest, members[node], troubles, len(holders) + 1)

    async def _copy(self, manifest: Manifest, member: Member, troubles: Troubles, copies: int) -> None:
        identity = manifest.id.identity
        copying = self._copying[identity] = _Copying(member.node, member.instance, trio.CancelScope())
        try:
            with copying.scope:
                await self._copier.copy(manifest, self._places.peer(member), member.node, troubles, copies)
        except SnapshotConflict as conflict:
            # Another line of the same volume: whoever mounts it sorts that out; both stay.
            log.warning("copy.number_taken", snapshot=str(manifest.id), place=member.node, reason=str(conflict))
        finally:
            del self._copying[identity]

    def _owner(self, manifest: Manifest) -> Member:
        known: Sequence[Member] = self._places.membership.members()
        unknown = Member(manifest.node, "", "", "", alive=False)
        return next((member for member in known if member.node == manifest.node), unknown)


def _tell_postponed(error: Exception, **what: str) -> None:
    metrics.error("orphans")
    log.warning("orphans.postponed", reason=str(error), **what)


def holders_of(location: Location, number: int) -> frozenset[str] | None:
    """The live nodes that list a snapshot; None when one lists a newer: then this is no matter any more."""
    live = [(member.node, numbers) for member, numbers in location.holders if member.alive]
    if any(numbers[-1] > number for _, numbers in live):
        return None
    return frozenset(node for node, numbers in live if number in numbers)
