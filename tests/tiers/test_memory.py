from __future__ import annotations

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.errors import TierFull
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.tiers.base import Tier, TierName
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.snapshots import holding
from tests.tiers.contract import TierContract


class TestMemoryTier(TierContract):
    @pytest.fixture
    def tier(self) -> Tier:
        return MemoryTier()

    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        assert isinstance(tier, MemoryTier)
        tier.blobs.contents[blob] = content

    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        assert isinstance(tier, MemoryTier)
        tier.texts[snapshot] = text


async def test_what_does_not_fit_is_refused_and_leaves_nothing() -> None:
    tier = MemoryTier(TierName.PEER, "peer b", capacity=100)
    source = holding([b"x" * 101])
    with pytest.raises(TierFull):
        await tier.store(source.contents.keys(), source)
    assert await tier.missing(source.contents.keys()) == source.contents.keys()


async def test_the_age_of_content_is_told_by_the_clock_that_was_given() -> None:
    now = 1000.0
    tier = MemoryTier(clock=lambda: now)
    await tier.store([hash_bytes(b"old")], holding([b"old"]))
    now += 60
    await tier.store([hash_bytes(b"young")], holding([b"young"]))
    assert await tier.collect(30) == 3
    assert await tier.missing([hash_bytes(b"old"), hash_bytes(b"young")]) == {hash_bytes(b"old")}
