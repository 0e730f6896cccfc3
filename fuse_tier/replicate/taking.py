"""From a volume's live tree to a snapshot that the RAM tier lists: taken, numbered, committed, recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.errors import FuseTierError, SnapshotConflict
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.copies import Copies
from fuse_tier.replicate.instant import Gate
from fuse_tier.replicate.listing import is_worth_a_number, list_in_ram
from fuse_tier.replicate.snapshot import Snapshotter
from fuse_tier.replicate.tenure import Tenure
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)


class Taking:
    """Takes the snapshots of one volume, one at a time (the caller sees to that). Announces each in ``news``."""

    def __init__(
        self,
        identity: Identity,
        ram: RamTier,
        layout: VolumeLayout,
        snapshotter: Snapshotter,
        tenure: Tenure,
        copies: Copies,
        news: Broadcast,
        is_mounted: Callable[[], bool],
    ) -> None:
        self._identity = identity
        self._ram = ram
        self._layout = layout
        self._snapshotter = snapshotter
        self._tenure = tenure
        self._copies = copies
        self._news = news
        self._is_mounted = is_mounted

    async def take(self, gate: Gate, *, is_awaited: bool = False) -> Manifest | None:
        """The newest snapshot, after one was committed of the tree as it is now, if it differs.

        Raises what ``Volume.take_snapshot`` says.
        """
        previous, started = self._copies.newest, trio.current_time()
        snapshot = self._next_id()
        manifest = await self._snapshotter.take(snapshot, self._tenure.lineage, gate, previous, is_awaited=is_awaited)
        is_other = previous is not None and self._tenure.is_to_be_renumbered
        if is_other or await trio.to_thread.run_sync(is_worth_a_number, self._layout, previous, manifest):
            return await self._commit(manifest, trio.current_time() - started)
        return previous

    def _next_id(self) -> SnapshotId:
        try:
            return SnapshotId(self._identity, self._tenure.numbering.next())
        except FuseTierError:
            if not self._is_mounted():  # nobody asks whose it is: somebody else has gone on with it
                self._tenure.superseded = "another node"
            self._news.announce()
            raise

    async def _commit(self, manifest: Manifest, seconds: float) -> Manifest:
        failpoints.reached("snapshot.walked")
        try:
            self._copies.is_listed = await list_in_ram(self._ram, self._layout, manifest)
        except SnapshotConflict as conflict:
            # A replica that came from elsewhere has the number: take one above it, if the volume is still ours.
            if not self._is_mounted():
                self._tenure.superseded = "another node"
                raise
            log.info("snapshot.renumbered", snapshot=str(manifest.id), reason=str(conflict))
            self._tenure.numbering.heard_of(conflict.highest)
            manifest = replace(manifest, id=self._next_id())
            self._copies.is_listed = await list_in_ram(self._ram, self._layout, manifest)
        number = manifest.id.number
        failpoints.reached("snapshot.committed")
        await trio.to_thread.run_sync(self._tenure.record, number)
        failpoints.reached("snapshot.recorded")
        self._tenure.numbering.heard_of(number)
        self._tenure.is_to_be_renumbered = False
        self._copies.follow(manifest)
        self._news.announce()
        metrics.snapshot_taken(manifest.size)
        metrics.committed(TierName.RAM)
        metrics.durable(str(self._identity), TierName.RAM, manifest.created_ns)
        log.info(
            "snapshot.committed",
            identity=str(self._identity),
            snapshot=number,
            entries=len(manifest.entries),
            bytes=manifest.size,
            seconds=round(seconds, 3),
        )
        return manifest
