"""Volumes that nobody keeps: their node is gone, or came back empty, and no other has mounted them yet.

Of those that hold the newest snapshot of one, the first by name sees to it that the configured number of nodes do.
It never makes two of them do the same for long: each looks who else there is, and who is the first. A volume whose
node is alive and still has it is that node's to keep (fanout.py). So is one that another has mounted; but if that one
does not have it after all that time (custody.py), one more node gets it in its place, from which it can have it then.

What a node has that is about to be taken away does not count. Where only such nodes have a snapshot, the first of
them brings it to one that stays before it ends; the rest is up to that one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.errors import FuseTierError, SnapshotConflict
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.members import Location, Member
from fuse_tier.replicate.copying import Copier, Troubles
from fuse_tier.replicate.custody import Custody
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.targets import Targets
from fuse_tier.replicate.unsaved import Unsaved
from fuse_tier.replicate.volume import Volume

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS = 5.0
_LOOK_SOON_SECONDS = 0.5  # while this node leaves


@dataclass(frozen=True, slots=True)
class _Copying:
    """A copy that is under way."""

    snapshot: SnapshotId
    node: str
    instance: str
    scope: trio.CancelScope


@dataclass(frozen=True, slots=True)
class Holders:
    """The live other nodes that list a snapshot."""

    staying: frozenset[str]
    leaving: frozenset[str]  # about to be taken away: what they have does not count


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
        self._custody = Custody(places.membership)
        self._silent: frozenset[str] = frozenset()  # nodes that a drain asked in vain

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
                with trio.move_on_after(_LOOK_EVERY_SECONDS if membership.own().stays else _LOOK_SOON_SECONDS):
                    await membership.wait_changed(version)

    async def look(self, nursery: trio.Nursery) -> None:
        """Begins to have copied what is missing: each volume by itself, so that no slow copy holds up another volume,
        now or in a later round. Raises OSError.
        """
        newest = await self._newest()
        self._custody.look(newest.keys())
        alive = {member.node: member.instance for member in self._places.membership.members() if member.alive}
        for copying in self._copying.values():
            # Else it would hold its turn until a deadline says what is known already, or bring what nobody wants.
            if alive.get(copying.node) != copying.instance or self._is_kept(copying.snapshot):
                copying.scope.cancel()
        self._troubles = {identity: self._troubles.get(identity, Troubles()) for identity in newest}
        for snapshot in newest.values():
            self._troubles[snapshot.identity].look_at(alive)
            if snapshot.identity not in self._at_work and not self._is_kept(snapshot):
                self._at_work.add(snapshot.identity)
                nursery.start_soon(self._look_after_one, snapshot, self._troubles[snapshot.identity])

    async def drain(self, seconds: float) -> None:
        """Has copied what only nodes have that leave, as this one, and waits for that, so many seconds at most.

        One copy is enough, on a node that stays or in the bucket: peers may have no room. Raises OSError.
        """
        membership, unsaved_here = self._places.membership, Unsaved(self._places)
        unsaved: set[SnapshotId] = set()
        begun: set[SnapshotId] = set()
        backed_up: set[SnapshotId] = set()
        try:
            with trio.move_on_after(seconds) as scope:
                async with trio.open_nursery() as nursery:
                    while True:
                        version = membership.version
                        await self.look(nursery)
                        unsaved = await self._unsaved(unsaved_here) - backed_up
                        self._silent = unsaved_here.silent
                        self._custody.forsaken = frozenset(snapshot.identity for snapshot in unsaved)
                        for snapshot in unsaved - begun:
                            begun.add(snapshot)
                            nursery.start_soon(self._back_up, snapshot, backed_up)
                        if not unsaved:
                            break
                        with trio.move_on_after(_LOOK_SOON_SECONDS):
                            await membership.wait_changed(version)
                    nursery.cancel_scope.cancel()  # what is still being copied is not only here
        finally:
            self._silent, self._custody.forsaken = frozenset(), frozenset()
        if scope.cancelled_caught:
            for snapshot in sorted(unsaved - backed_up):
                log.warning("drain.ran_out", snapshot=str(snapshot), seconds=seconds, peer=0, bucket=0)

    async def _unsaved(self, unsaved_here: Unsaved) -> set[SnapshotId]:
        """Newest snapshots of volumes without a tree here that no node has which stays. Raises OSError."""
        may_copy = self._replicas and any(member.stays for member in self._places.membership.members())
        if not may_copy and self._places.bucket is None:
            return set()  # and nothing can be done about that
        newest = await self._newest()
        return await unsaved_here.among(one for one in newest.values() if not self._is_kept_here(one))

    async def _back_up(self, snapshot: SnapshotId, backed_up: set[SnapshotId]) -> None:
        """Brings it to the bucket, if that does not list it, or a newer one. Survives its failures."""
        bucket, ask = self._places.bucket, self._places.ask_bucket
        if bucket is None or ask is None:
            return
        try:
            found = await ask(snapshot.identity, "")
            if max(found.numbers, default=0) < snapshot.number:
                manifest = await self._places.ram.manifest(snapshot)
                if not await self._copier.copy(manifest, bucket, bucket.place, Troubles(), 0):
                    return  # it has told why
            backed_up.add(snapshot)
        except (FuseTierError, OSError) as error:
            _tell_postponed(error, snapshot=str(snapshot))

    async def _newest(self) -> dict[Identity, SnapshotId]:
        """Of each volume of which something is listed here. Raises OSError."""
        newest: dict[Identity, SnapshotId] = {}
        for snapshot in await self._places.ram.snapshots():
            newest[snapshot.identity] = snapshot
        return newest

    async def _look_after_one(self, snapshot: SnapshotId, troubles: Troubles) -> None:
        """Survives its failures."""
        try:
            await self._look_after(snapshot, troubles)
        except (FuseTierError, OSError) as error:
            _tell_postponed(error, snapshot=str(snapshot))
        finally:
            self._at_work.discard(snapshot.identity)

    def _is_kept(self, snapshot: SnapshotId) -> bool:
        """Whether it lives here, or somebody who is alive has it mounted, and has it."""
        return self._is_kept_here(snapshot) or self._custody.keeps(snapshot.identity)

    def _is_kept_here(self, snapshot: SnapshotId) -> bool:
        """A tree that was left here, and has been mounted elsewhere since, is not what another node saved there."""
        volume, identity = self._find(snapshot.identity), snapshot.identity
        if identity in self._places.membership.mounted() or (volume is not None and volume.mounting.locked()):
            return True
        if volume is None or not volume.has_tree or volume.tenure.superseded:
            return False
        return volume.newest is not None and volume.newest.id.number >= snapshot.number

    async def _look_after(self, snapshot: SnapshotId, troubles: Troubles) -> None:
        manifest = await self._places.ram.manifest(snapshot)
        location = await self._places.membership.locate(snapshot.identity)
        holders = holders_of(location, snapshot.number, self._silent)
        own = self._places.membership.own()
        if location.silent and own.stays:
            return  # one of them may have a newer one, or this: later
        if holders is None or self._is_in_custody(manifest, holders):
            self._custody.trust(snapshot.identity)
            return
        if own.stays and self._is_to_wait(manifest, location):
            return
        good = holders.staying | ({own.node} if own.stays else frozenset())
        wanted = self._wanted(snapshot.identity)
        if min(good or holders.leaving | {own.node}) != own.node or len(good) >= wanted:
            return
        members = {member.node: member for member in self._places.membership.members() if member.alive}
        have = holders.staying | holders.leaving | {own.node}
        chosen = await self._targets.of(snapshot.identity, self._owner(manifest), troubles.refusing() | have)
        lacking = [node for node in chosen if node in members]
        for node in lacking[: wanted - len(good)]:
            if self._is_kept(snapshot):
                return  # by now
            log.info("orphan.kept", snapshot=str(snapshot), owner=manifest.node, copies=len(good), to=node)
            await self._copy(manifest, members[node], troubles, len(good))

    def _is_in_custody(self, manifest: Manifest, holders: Holders) -> bool:
        """Whether who keeps the copies of a volume has a snapshot: its owner, else the node that took it."""
        custodian = self._custody.owner(manifest.id.identity) or manifest.node
        return custodian in holders.staying | holders.leaving

    def _is_to_wait(self, manifest: Manifest, location: Location) -> bool:
        """Whether an owner that does not have a snapshot may be bringing it, or can have it from the bucket."""
        if self._custody.owner(manifest.id.identity) is None:
            return False
        return not self._custody.is_late(manifest) or max(location.bucket, default=0) >= manifest.id.number

    def _wanted(self, identity: Identity) -> int:
        """How many copies there are to be: one more where an owner does not have the volume."""
        if not self._places.membership.own().stays:
            return min(1, self._replicas)
        return self._replicas + (self._replicas > 0 and self._custody.owner(identity) is not None)

    async def _copy(self, manifest: Manifest, member: Member, troubles: Troubles, copies: int) -> None:
        identity = manifest.id.identity
        copying = self._copying[identity] = _Copying(manifest.id, member.node, member.instance, trio.CancelScope())
        try:
            with copying.scope:
                await self._copier.copy(manifest, self._places.peer(member), member.node, troubles, copies)
        except SnapshotConflict as conflict:
            # Another line of the same volume: whoever mounts it sorts that out; both stay.
            log.warning("copy.number_taken", snapshot=str(manifest.id), place=member.node, reason=str(conflict))
        finally:
            del self._copying[identity]

    def _owner(self, manifest: Manifest) -> Member:
        """The node whose volume it is, or was."""
        known: Sequence[Member] = self._places.membership.members()
        owner = self._custody.owner(manifest.id.identity) or manifest.node
        return next((member for member in known if member.node == owner), Member(owner, "", "", "", alive=False))


def _tell_postponed(error: Exception, **what: str) -> None:
    metrics.error("orphans")
    log.warning("orphans.postponed", reason=str(error), **what)


def holders_of(location: Location, number: int, apart_from: Collection[str] = ()) -> Holders | None:
    """Who lists a snapshot, ``apart_from`` some; None when a live one lists a newer one: then this is no matter any
    more.
    """
    holders = ((member, numbers) for member, numbers in location.holders if member.node not in apart_from)
    live = [(member, numbers) for member, numbers in holders if member.alive]
    if any(numbers[-1] > number for _, numbers in live):
        return None
    listing = [member for member, numbers in live if number in numbers]
    staying = frozenset(member.node for member in listing if member.stays)
    return Holders(staying, frozenset(member.node for member in listing) - staying)
