"""A RAM tier of its own for each test, with a volume on it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage, Manifest
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.instant import Gate, Quiescent
from fuse_tier.replicate.snapshot import Snapshotter
from fuse_tier.replicate.volume import Volume, VolumeOptions
from fuse_tier.tiers.ram import RamTier
from tests.replicate.members import cluster as cluster

IDENTITY = Identity("default", "llama", "0")
LINEAGE = Lineage("llama")


@dataclass(frozen=True, slots=True)
class Bench:
    """A node's RAM tier, and one volume with an empty live tree, not mounted."""

    layout: Layout
    ram: RamTier
    volume: Volume

    @property
    def tree(self) -> Path:
        return Path(self.volume.layout.tree)

    def another_volume(self, identity: Identity) -> Volume:
        """One more."""
        return make_volume(self.ram, self.layout, identity)

    def snapshotter(self) -> Snapshotter:
        limiter = trio.CapacityLimiter(2)
        return Snapshotter(self.layout, self.volume.layout, "a", limiter, self.volume.evicting)

    async def snapshot(self, number: int = 1, previous: Manifest | None = None, gate: Gate | None = None) -> Manifest:
        """Takes a snapshot and commits it."""
        taken = await self.snapshotter().take(SnapshotId(IDENTITY, number), LINEAGE, gate or Quiescent(), previous)
        await self.ram.commit(taken)
        return taken


def make_volume(ram: RamTier, layout: Layout, identity: Identity) -> Volume:
    """With an empty live tree, not mounted."""
    volume = Volume(identity, ram, layout, VolumeOptions("a", 0.05, 1), trio.CapacityLimiter(2))
    volume.make_directories()
    Path(volume.layout.tree).mkdir()
    volume.began(LINEAGE, None, 0)
    return volume


@pytest.fixture
def bench() -> Iterator[Bench]:
    root = Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}")  # noqa: S108 - a tmpfs that everybody may use
    root.mkdir()
    try:
        layout = Layout(str(root))
        create_directories(layout)
        ram = RamTier(layout, "a")
        yield Bench(layout, ram, make_volume(ram, layout, IDENTITY))
    finally:
        shutil.rmtree(root)
