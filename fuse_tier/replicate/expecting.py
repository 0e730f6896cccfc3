"""What peers will probably send next: of each volume that is mounted elsewhere, what its newest copy here has."""

from __future__ import annotations

from collections.abc import Callable

from fuse_tier.errors import Damaged, NotFound
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.replicate.sparing import next_sizes
from fuse_tier.tiers.ram import RamTier


class Expecting:
    """Of one node. Each manifest is read once."""

    def __init__(self, ram: RamTier, is_mounted_elsewhere: Callable[[Identity], bool]) -> None:
        self._ram = ram
        self._is_mounted_elsewhere = is_mounted_elsewhere
        self._known: dict[SnapshotId, list[int]] = {}

    async def sizes(self) -> list[int]:
        """Of the large files that are expected."""
        newest: dict[Identity, SnapshotId] = {}
        for snapshot in await self._ram.snapshots():  # in order, the newest of a volume last
            newest[snapshot.identity] = snapshot
        wanted = [one for one in newest.values() if self._is_mounted_elsewhere(one.identity)]
        self._known = {one: self._known[one] if one in self._known else await self._read(one) for one in wanted}
        return [size for sizes in self._known.values() for size in sizes]

    async def _read(self, snapshot: SnapshotId) -> list[int]:
        try:
            return next_sizes((await self._ram.manifest(snapshot)).entries)
        except (Damaged, NotFound):  # the scrub tells of it, and retention may just have dropped it
            return []
