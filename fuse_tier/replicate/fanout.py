"""Copying snapshots to peers and to the bucket, each at its own pace.

One task per volume and kind of tier. Only the newest snapshot counts: what was superseded while it waited is
skipped, what is being copied is finished. A place that fails is tried again with growing pauses, and for
peers another one is asked meanwhile; so after a fault ends everything converges by itself. A copy counts when
the receiver has verified and committed it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Progress
from fuse_tier.errors import FuseTierError, SnapshotConflict
from fuse_tier.manifest import Manifest
from fuse_tier.members import Member
from fuse_tier.replicate.backups import Backups
from fuse_tier.replicate.placement import choose_holders
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.traffic import Meter
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Tier, TierName, no_progress

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_COPIES_AT_ONCE = {TierName.PEER: 2, TierName.BUCKET: 2}


@dataclass(slots=True)
class _Trouble:
    """A place that failed: when to try it again."""

    pause: float
    until: float


class Fanout:
    """Keeps the copies of one node's volumes."""

    def __init__(self, places: Places, own: Callable[[], Member], replicas: int) -> None:
        self._places = places
        self._own = own
        self._replicas = replicas
        self._limiters = {tier: trio.CapacityLimiter(count) for tier, count in _COPIES_AT_ONCE.items()}
        self._jitter = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.meters = {tier: Meter() for tier in _COPIES_AT_ONCE}

    async def keep_peers(self, volume: Volume) -> None:
        """Keeps the configured number of copies of a volume's newest snapshot in peers' RAM."""
        confirmed: dict[str, str] = {}  # node -> instance that verified what is recorded as held
        troubles: dict[str, _Trouble] = {}
        copying: set[str] = set()

        async def copy_to(member: Member, manifest: Manifest) -> None:
            try:
                if await self._copy(volume, manifest, self._places.peer(member), member.node, troubles):
                    confirmed[member.node] = member.instance
                    volume.stored(TierName.PEER, member.node, manifest.id.number)
            finally:
                copying.discard(member.node)
                volume.news.announce()

        async with trio.open_nursery() as nursery:
            while True:
                news = volume.news.version
                for member in self._peer_targets(volume, confirmed, troubles):
                    if member.node not in copying and volume.newest is not None:
                        copying.add(member.node)
                        nursery.start_soon(copy_to, member, volume.newest)
                await self._wait(volume, news, troubles)

    def _peer_targets(self, volume: Volume, confirmed: dict[str, str], troubles: dict[str, _Trouble]) -> list[Member]:
        """Who shall have the newest snapshot, and is not known to have it."""
        alive = {member.node: member for member in self._places.membership.members() if member.alive}
        for node, instance in list(confirmed.items()):
            if node not in alive or alive[node].instance != instance:
                del confirmed[node]
                volume.lost(TierName.PEER, node)
        if volume.newest is None:
            return []
        able = [member for member in alive.values() if self._may_try(member.node, troubles)]
        chosen = choose_holders(volume.identity, self._own(), able, self._replicas)
        held = volume.held(TierName.PEER)
        return [alive[node] for node in chosen if held.get(node, 0) < volume.newest.id.number]

    async def keep_bucket(self, volume: Volume, backups: Backups) -> None:
        """Keeps in the bucket what ``backups`` chooses of a volume's snapshots."""
        bucket = self._places.bucket
        if bucket is None:
            return
        troubles: dict[str, _Trouble] = {}
        while True:
            news = volume.news.version
            chosen, seconds = await backups.choose(volume)
            if chosen is not None and self._may_try(bucket.place, troubles):
                moved = backups.begin(volume, chosen)
                done = await self._copy(volume, chosen, bucket, bucket.place, troubles, moved)
                if done:
                    volume.stored(TierName.BUCKET, bucket.place, chosen.id.number)
                await backups.ended(volume, chosen, done=done)
                continue
            with trio.move_on_after(seconds if chosen is None else float("inf")):
                await self._wait(volume, news, troubles)

    @staticmethod
    def _may_try(place: str, troubles: dict[str, _Trouble]) -> bool:
        return place not in troubles or troubles[place].until <= trio.current_time()

    async def _wait(self, volume: Volume, news: int, troubles: dict[str, _Trouble]) -> None:
        waiting = [trouble.until for trouble in troubles.values() if trouble.until > trio.current_time()]
        with trio.move_on_at(min(waiting, default=float("inf"))):
            await volume.news.wait_beyond(news)

    async def _copy(
        self,
        volume: Volume,
        manifest: Manifest,
        tier: Tier,
        place: str,
        troubles: dict[str, _Trouble],
        progress: Progress = no_progress,
    ) -> bool:
        """Copies one snapshot to one place; whether it is there now. Survives that place's failures."""
        meter = self.meters[tier.name]

        def count(moved: int) -> None:
            meter.add(moved)
            progress(moved)
            metrics.bytes_moved(tier.name.value, "out", moved)

        async with self._limiters[tier.name]:
            started = trio.current_time()
            try:
                with volume.using(manifest.id.number):
                    await tier.store(manifest.blobs, self._places.ram, count)
                    await tier.commit(manifest)
            except SnapshotConflict as conflict:
                log.warning("copy.number_taken", snapshot=str(manifest.id), place=tier.place, reason=str(conflict))
                volume.exists_elsewhere(conflict.highest)
                self._note_failure(place, troubles)
                return False
            except (FuseTierError, OSError) as error:
                metrics.error("copy")
                if place not in troubles:
                    log.warning("copy.failed", snapshot=str(manifest.id), place=tier.place, reason=str(error))
                self._note_failure(place, troubles)
                return False
            seconds = trio.current_time() - started
        if troubles.pop(place, None) is not None:
            log.info("copy.recovered", snapshot=str(manifest.id), place=tier.place)
        metrics.copied(tier.name.value, seconds)
        metrics.committed(tier.name.value)
        log.info(
            "snapshot.copied",
            identity=str(manifest.id.identity),
            snapshot=manifest.id.number,
            tier=tier.name.value,
            place=tier.place,
            bytes=manifest.size,
            seconds=round(seconds, 3),
        )
        return True

    def _note_failure(self, place: str, troubles: dict[str, _Trouble]) -> None:
        before = troubles.get(place)
        pause = min(_LONGEST_PAUSE, before.pause * 2 if before else _FIRST_PAUSE)
        troubles[place] = _Trouble(pause, trio.current_time() + pause * self._jitter.uniform(0.75, 1.25))
