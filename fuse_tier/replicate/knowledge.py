"""What the snapshots in this node's RAM are part of, read from each manifest once."""

from __future__ import annotations

from collections.abc import Iterable

from fuse_tier.checkpoints import Saved
from fuse_tier.errors import Damaged, NotFound
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.tiers.ram import RamTier


class Knowledge:
    """Of one RAM tier. What a manifest says never changes."""

    def __init__(self, ram: RamTier) -> None:
        self._ram = ram
        self._known: dict[SnapshotId, Saved] = {}

    async def of(self, snapshots: Iterable[SnapshotId]) -> dict[SnapshotId, Saved | None]:
        """Of each; None for one whose manifest cannot be read."""
        found: dict[SnapshotId, Saved | None] = {}
        for snapshot in snapshots:
            if snapshot not in self._known:
                try:
                    self._known[snapshot] = Saved.of(await self._ram.manifest(snapshot))
                except (Damaged, NotFound):
                    found[snapshot] = None
                    continue
            found[snapshot] = self._known[snapshot]
        return found

    async def of_jobs(self, listed: Iterable[SnapshotId]) -> dict[Identity, tuple[Saved, ...]]:
        """Of everything that is listed what is of jobs of several ranks; the rest is forgotten."""
        known = await self.of(listed)
        self._known = {snapshot: saved for snapshot, saved in known.items() if saved is not None}
        by_volume: dict[Identity, list[Saved]] = {}
        for snapshot, saved in self._known.items():
            if saved.lineage.world_size > 1:
                by_volume.setdefault(snapshot.identity, []).append(saved)
        return {identity: tuple(several) for identity, several in by_volume.items()}
