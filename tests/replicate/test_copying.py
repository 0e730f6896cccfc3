"""In which order snapshots are copied, when more are due than may be under way."""

from __future__ import annotations

from collections.abc import Collection

import trio
from trio.testing import wait_all_tasks_blocked

from fuse_tier.blobs import Blob, Progress, Source
from fuse_tier.hashing import hash_bytes
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.copying import Copier, Troubles
from fuse_tier.tiers.base import TierName, no_progress
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.snapshots import manifest_of
from tests.replicate.conftest import Bench


class HeldUp(MemoryTier):
    """A peer that is done with one copy whenever it is told so, and knows in which order it was offered them."""

    def __init__(self) -> None:
        super().__init__(TierName.PEER)
        self.done = trio.Semaphore(0)
        self.offered: list[Blob] = []

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        self.offered += blobs
        await self.done.acquire()

    async def commit(self, manifest: Manifest) -> None:
        await trio.lowlevel.checkpoint()


async def test_when_turns_are_short_the_volumes_with_the_fewest_copies_come_first(bench: Bench) -> None:
    copier, peer = Copier(bench.ram), HeldUp()
    copies = {"first": 2, "second": 2, "two copies": 2, "one copy": 1, "none": 0}
    async with trio.open_nursery() as nursery:
        for name, count in copies.items():
            manifest = manifest_of({"weights": name.encode()})
            nursery.start_soon(copier.copy, manifest, peer, "b", Troubles(), count)
            await wait_all_tasks_blocked()
        for _ in copies:
            peer.done.release()
            await wait_all_tasks_blocked()
    expected = ["first", "second", "none", "one copy", "two copies"]
    assert peer.offered == [hash_bytes(name.encode()) for name in expected]
