"""Keeping the copies of local volumes: in peers' RAM and in the bucket, each at its own pace.

One task per volume and kind of tier. Only the newest snapshot counts: what was superseded before its copy began is
skipped, and a copy that has begun is finished, unless a job needs the room (sending.py). A place that fails is tried
again with growing pauses, and for peers another one is asked meanwhile, as for one that is slow; so after a fault
ends everything converges by itself. A volume that another node has mounted is that node's to keep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Progress
from fuse_tier.errors import SnapshotConflict
from fuse_tier.manifest import Manifest
from fuse_tier.members import Member
from fuse_tier.replicate.backups import Backups
from fuse_tier.replicate.copying import Copier, Troubles, patience_with
from fuse_tier.replicate.ownership import Ownership
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.targets import Targets
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Tier, TierName, no_progress

log = structlog.get_logger(__name__)

_SLOW_PEERS = 2  # that others are asked in place of: when those are slow, too, it is our own link that is
_OPERATIONS = {TierName.PEER: "CheckpointReplication", TierName.BUCKET: "CheckpointBackup"}


@dataclass(frozen=True, slots=True)
class _Copying:
    """A copy that is under way."""

    instance: str
    scope: trio.CancelScope
    late: float  # by trio's clock


class Fanout:
    """Keeps the copies of one node's volumes."""

    def __init__(self, places: Places, copier: Copier, targets: Targets, ownership: Ownership) -> None:
        self._places = places
        self._copier = copier
        self._targets = targets
        self._ownership = ownership

    async def keep_peers(self, volume: Volume) -> None:
        """Keeps the configured number of copies of a volume's newest snapshot in peers' RAM."""
        async with trio.open_nursery() as nursery:
            await _PeerCopies(self, volume, nursery).keep()

    async def keep_bucket(self, volume: Volume, backups: Backups) -> None:
        """Keeps in the bucket what ``backups`` chooses of a volume's snapshots."""
        bucket = self._places.bucket
        if bucket is None:
            return
        troubles = Troubles()
        while True:
            news = volume.news.version
            chosen, seconds = await backups.choose(volume)
            is_ours = False
            if chosen is not None and troubles.may_try(bucket.place):
                is_ours = await self.is_ours(volume)
                backups.note_owner(volume, is_ours=is_ours)
            if chosen is not None and is_ours:
                moved = backups.begin(volume, chosen)
                done = await self.copy(volume, chosen, bucket, bucket.place, troubles, moved)
                if done:
                    volume.copies.stored(TierName.BUCKET, bucket.place, chosen.id.number)
                await backups.ended(volume, chosen, done=done, reason=troubles.reason(bucket.place))
                continue
            due = trio.current_time() + seconds if chosen is None else float("inf")
            with trio.move_on_at(min(due, troubles.next_try())):
                await volume.news.wait_beyond(news)

    async def is_ours(self, volume: Volume) -> bool:
        """Whether this node is to keep the volume's copies now."""
        return await self._ownership.is_ours(volume)

    async def _conflicts(self, volume: Volume, conflict: SnapshotConflict) -> None:
        """Somebody has another snapshot of our number: who has the volume mounted takes a number above it."""
        mounted = volume.identity in self._places.membership.mounted()
        if not mounted:
            # A tree that was left behind, and another node has gone on since.
            await self._ownership.succeeded(volume, "another node")
        elif await self.is_ours(volume):
            volume.exists_elsewhere(conflict.highest)

    async def copy(
        self,
        volume: Volume,
        manifest: Manifest,
        tier: Tier,
        place: str,
        troubles: Troubles,
        progress: Progress = no_progress,
    ) -> bool:
        """Copies one snapshot of a volume; whether it is there now."""
        started, done, number = trio.current_time(), False, manifest.id.number
        copies = sum(held >= number for held in volume.copies.held(tier.name).values())
        try:
            with volume.sending.of(number) if tier.name is TierName.PEER else volume.using(number):
                done = await self._copier.copy(manifest, tier, place, troubles, copies, progress)
        except SnapshotConflict as conflict:
            log.warning("copy.number_taken", snapshot=str(manifest.id), place=tier.place, reason=str(conflict))
            await self._conflicts(volume, conflict)
        if volume.framework:
            code = "OK" if done else "UNAVAILABLE"
            metrics.node_operated(_OPERATIONS[tier.name], volume.framework, trio.current_time() - started, code)
        return done

    async def targets(self, volume: Volume, refusing: Iterable[str]) -> tuple[str, ...]:
        """Where the copies of a volume belong, but for those that refuse."""
        return await self._targets.of(volume.identity, self._places.membership.own(), {*refusing})

    def spared(self, volume: Volume) -> set[str]:
        """The nodes that may have what the volume has lost, and are to get nothing newer before they were asked.

        A node that drains does not wait for that.
        """
        lost = volume.lost
        if lost is None or self._copier.drains_since_ns is not None:
            return set()
        return {member.node for member in self._places.membership.members() if lost.may_be_on(member)}

    @property
    def targets_due(self) -> float:
        """When copies may belong elsewhere though nothing changes any more: see Targets."""
        return self._targets.due

    @property
    def places(self) -> Places:
        """Where copies can go."""
        return self._places


class _PeerCopies:
    """The copies of one volume in peers' RAM."""

    def __init__(self, fanout: Fanout, volume: Volume, nursery: trio.Nursery) -> None:
        self._fanout = fanout
        self._volume = volume
        self._nursery = nursery
        self._confirmed: dict[str, str] = {}  # node -> instance that verified what is recorded as held
        self._copying: dict[str, _Copying] = {}
        self._troubles = Troubles()

    async def keep(self) -> None:
        """Runs until cancelled."""
        volume = self._volume
        while True:
            news = volume.news.version
            alive = {member.node: member for member in self._fanout.places.membership.members() if member.alive}
            self._forget_gone(alive)
            due = self._fanout.targets_due
            targets_due = due if due > trio.current_time() else math.inf  # else they are decided anew right now
            # Anew after each: who has failed before is tried beside whoever stands in for it.
            while volume.newest is not None and (lacking := await self._lacking(alive)):
                self._begin(alive[lacking[0]], volume.newest)
            with trio.move_on_at(min(self._troubles.next_try(), self._next_late(), targets_due)):
                await volume.news.wait_beyond(news)

    def _forget_gone(self, alive: dict[str, Member]) -> None:
        self._troubles.look_at({node: member.instance for node, member in alive.items()})
        for node, instance in list(self._confirmed.items()):
            if node not in alive or alive[node].instance != instance:
                del self._confirmed[node]
                self._volume.copies.lost(TierName.PEER, node)
        for node, copying in self._copying.items():
            if node not in alive or alive[node].instance != copying.instance:
                copying.scope.cancel()  # else it would hold its turn until a deadline says what is known already

    async def _lacking(self, alive: Collection[str]) -> list[str]:
        """Who shall have the newest snapshot, is not known to have it, and is not being sent anything.

        Others stand in for those that are late or have failed, until they have it: one that is alive and out of reach
        is tried again and again, and nothing waits for that.
        """
        volume = self._volume
        if volume.newest is None or not await self._fanout.is_ours(volume) or volume.tenure.is_to_be_renumbered:
            return []
        now = trio.current_time()
        late = {node: copying for node, copying in self._copying.items() if copying.late <= now}
        slow = sorted(late, key=lambda node: late[node].late)[:_SLOW_PEERS]
        tried = {node for node in self._copying if self._troubles.reason(node)}
        spared = self._fanout.spared(volume)
        chosen = await self._fanout.targets(volume, self._troubles.refusing().union(slow, tried, spared))
        held, number = volume.copies.held(TierName.PEER), volume.newest.id.number
        # A member may have gone while that was decided: the next turn will know.
        able = [node for node in chosen if node in alive and node not in self._copying]
        return [node for node in able if held.get(node, 0) < number]

    def _next_late(self) -> float:
        now = trio.current_time()
        return min((copying.late for copying in self._copying.values() if copying.late > now), default=float("inf"))

    def _begin(self, member: Member, manifest: Manifest) -> None:
        late = trio.current_time() + patience_with(manifest)
        copying = _Copying(member.instance, trio.CancelScope(), late)
        self._copying[member.node] = copying
        self._nursery.start_soon(self._copy, member, manifest, copying)

    async def _copy(self, member: Member, manifest: Manifest, copying: _Copying) -> None:
        fanout, volume = self._fanout, self._volume
        try:
            with copying.scope:
                tier = fanout.places.peer(member)
                if await fanout.copy(volume, manifest, tier, member.node, self._troubles):
                    self._confirmed[member.node] = member.instance
                    before = volume.copies.is_replicated(manifest.id.number)
                    volume.copies.stored(TierName.PEER, member.node, manifest.id.number)
                    if volume.framework and not before and volume.copies.is_replicated(manifest.id.number):
                        seconds = max(0.0, time.time() - manifest.created_ns / 1e9)
                        metrics.node_operated("CheckpointReplicationTotal", volume.framework, seconds)
        finally:
            del self._copying[member.node]
            volume.news.announce()
