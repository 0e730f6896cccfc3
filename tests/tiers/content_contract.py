"""What every tier does with content: the part of the contract about ``missing``, ``store`` and ``fetch``."""

from __future__ import annotations

import random

import pytest
import trio

from fuse_tier.errors import Damaged, IncompleteSnapshot, NotFound, TierFull
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.snapshots import LLAMA, cancel_after, check_producible, holding, manifest_of
from tests.tiers.damaging import Damaging


class ContentContract(Damaging):
    """Content, byte by byte."""

    async def test_a_tier_says_what_it_is(self, tier: Tier) -> None:
        assert tier.name.value in ("ram", "peer", "bucket")
        assert tier.place

    async def test_an_empty_tier_has_nothing_and_says_so(self, tier: Tier) -> None:
        blob = hash_bytes(b"weights")
        assert await tier.missing([blob, blob]) == {blob}
        assert await tier.missing([]) == set()
        assert list(await tier.snapshots()) == []
        assert list(await tier.snapshots(LLAMA)) == []
        with pytest.raises(NotFound, match="default/llama/slice-0-3@1"):
            await tier.manifest(SnapshotId(LLAMA, 1))
        await tier.drop(SnapshotId(LLAMA, 1))
        assert await tier.collect(0) == 0

    async def test_what_was_stored_comes_back_byte_by_byte(self, tier: Tier) -> None:
        sizes = (0, 1, 4095, 4096, 65_537, 3 << 20, (1 << 20) + 13)
        contents = [random.Random(size).randbytes(size) for size in sizes]
        source, sink = holding(contents), MemoryBlobs()
        await tier.store(source.contents.keys(), source)
        assert await tier.missing(source.contents.keys()) == set()
        fetched = await tier.fetch(source.contents.keys(), sink)
        assert fetched.arrived == source.contents.keys()
        assert fetched.failed == {}
        assert sink.contents == source.contents

    async def test_many_small_files_are_stored_and_come_back(self, tier: Tier) -> None:
        source, sink = holding(b"%d" % number for number in range(300)), MemoryBlobs()
        blobs = list(source.contents)
        await tier.store(blobs + blobs[:10], source)
        fetched = await tier.fetch(blobs + blobs[:10], sink)
        assert len(fetched.arrived) == 300
        assert sink.contents == source.contents

    async def test_progress_counts_every_byte_once(self, tier: Tier) -> None:
        source = holding([b"a" * 100_000, b"b" * 3_000_000, b""])
        stored: list[int] = []
        fetched: list[int] = []
        await tier.store(source.contents.keys(), source, stored.append)
        await tier.fetch(source.contents.keys(), MemoryBlobs(), fetched.append)
        assert sum(stored) == sum(fetched) == 3_100_000
        await tier.store(source.contents.keys(), source, stored.append)
        assert sum(stored) == 3_100_000

    async def test_what_is_here_already_is_not_read_from_the_source(self, tier: Tier) -> None:
        old, new = hash_bytes(b"old"), hash_bytes(b"new")
        await tier.store([old], holding([b"old"]))
        await tier.store([old, new], holding([b"new"]))
        assert await tier.missing([old, new]) == set()

    async def test_two_that_store_the_same_content_at_once_both_succeed(self, tier: Tier) -> None:
        source = holding([b"a" * 200_000, b"b" * 10, b"c" * 70_000])
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(tier.store, source.contents.keys(), source)
        sink = MemoryBlobs()
        await tier.fetch(source.contents.keys(), sink)
        assert sink.contents == source.contents

    async def test_what_the_source_lacks_is_not_found_and_storing_again_mends_it(self, tier: Tier) -> None:
        files = {"weights": b"0123", "optimizer": b"4567"}
        manifest = manifest_of(files)
        with pytest.raises(NotFound):
            await tier.store(manifest.blobs, holding([b"0123"]))
        with pytest.raises(IncompleteSnapshot):
            await tier.commit(manifest)
        await tier.store(manifest.blobs, holding(files.values()))
        await tier.commit(manifest)
        await check_producible(tier)

    @pytest.mark.parametrize("wrong", [b"012X", b"012", b"01234", b""])
    @pytest.mark.usefixtures("damage")
    async def test_content_that_is_not_what_its_name_says_is_never_kept(self, tier: Tier, wrong: bytes) -> None:
        blob = hash_bytes(b"0123")
        source = MemoryBlobs()
        source.contents = {blob: wrong}
        with pytest.raises(Damaged):
            await tier.store([blob], source)
        assert await tier.missing([blob]) == {blob}
        await tier.store([blob], holding([b"0123"]))
        assert await tier.missing([blob]) == set()

    async def test_fetch_tells_what_is_not_here_and_brings_the_rest(self, tier: Tier) -> None:
        await tier.store([hash_bytes(b"here")], holding([b"here"]))
        absent, present, sink = hash_bytes(b"absent"), hash_bytes(b"here"), MemoryBlobs()
        fetched = await tier.fetch([absent, present], sink)
        assert fetched.arrived == {present}
        assert list(fetched.failed) == [absent]
        assert isinstance(fetched.failed[absent], NotFound)
        assert sink.contents == {present: b"here"}
        assert await tier.fetch([], sink) == type(fetched)()

    @pytest.mark.parametrize("wrong", [b"whole X", b"whole", b"whole and more"])
    @pytest.mark.usefixtures("damage")
    async def test_fetch_hands_out_nothing_damaged(self, tier: Tier, wrong: bytes) -> None:
        source, sink = holding([b"whole !", b"fine"]), MemoryBlobs()
        await tier.store(source.contents.keys(), source)
        damaged, fine = hash_bytes(b"whole !"), hash_bytes(b"fine")
        await self.replace_content(tier, damaged, wrong)
        fetched = await tier.fetch([damaged, fine], sink)
        assert fetched.arrived == {fine}
        assert list(fetched.failed) == [damaged]
        assert isinstance(fetched.failed[damaged], Damaged)
        assert sink.contents == {fine: b"fine"}

    async def test_fetch_tells_what_does_not_fit_into_the_sink(self, tier: Tier) -> None:
        source, sink = holding([b"x" * 1000, b"tiny"]), MemoryBlobs(capacity=100)
        await tier.store(source.contents.keys(), source)
        fetched = await tier.fetch(source.contents.keys(), sink)
        assert fetched.arrived == {hash_bytes(b"tiny")}
        assert isinstance(fetched.failed[hash_bytes(b"x" * 1000)], TierFull)

    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 40, 150])
    async def test_whatever_is_cancelled_can_be_repeated(self, tier: Tier, steps: int) -> None:
        files = {"weights": b"0" * 300_000, "optimizer": b"4567"}
        manifest, source = manifest_of(files), holding(files.values())
        await cancel_after(steps, lambda: tier.store(manifest.blobs, source))
        await tier.store(manifest.blobs, source)
        await cancel_after(steps, lambda: tier.commit(manifest))
        await check_producible(tier)
        await tier.commit(manifest)
        sink = MemoryBlobs()
        await cancel_after(steps, lambda: tier.fetch(manifest.blobs, sink))
        assert all(hash_bytes(content) == blob for blob, content in sink.contents.items())
        await cancel_after(steps, lambda: tier.collect(0))
        await check_producible(tier)
        assert list(await tier.snapshots()) == [manifest.id]
        await cancel_after(steps, lambda: tier.drop(manifest.id))
        await check_producible(tier)
        await tier.drop(manifest.id)
        await tier.collect(0)
        assert list(await tier.snapshots()) == []
        assert await tier.missing(manifest.blobs) == manifest.blobs

    @pytest.mark.parametrize("steps", [0, 1, 3, 8, 20, 100])
    async def test_what_a_cancelled_store_left_is_collected(self, tier: Tier, steps: int) -> None:
        source = holding([b"%d" % number * 20_000 for number in range(10)])
        await cancel_after(steps, lambda: tier.store(source.contents.keys(), source))
        await tier.collect(0)
        assert await tier.missing(source.contents.keys()) == source.contents.keys()
