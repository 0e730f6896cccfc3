"""What every tier does with snapshots: the part of the contract about manifests, and what they keep from going."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from fuse_tier.errors import IncompleteSnapshot, MalformedManifest, NotFound, SnapshotConflict
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest, encode
from fuse_tier.tiers.base import Tier
from tests.harness.snapshots import GEMMA, LLAMA, check_producible, holding, keep, manifest_of
from tests.tiers.damaging import Damaging


class SnapshotContract(Damaging):
    """Snapshots, listed and whole."""

    async def test_a_committed_snapshot_is_listed_and_comes_back_whole(self, tier: Tier) -> None:
        manifest = await keep(tier, {"weights": b"0123", "optimizer": b"4567", "same": b"0123"})
        assert list(await tier.snapshots()) == [manifest.id]
        assert await tier.manifest(manifest.id) == manifest
        await check_producible(tier)

    async def test_a_snapshot_without_files_is_one_too(self, tier: Tier) -> None:
        manifest = manifest_of({})
        await tier.commit(manifest)
        assert await tier.manifest(manifest.id) == manifest

    async def test_snapshots_are_listed_in_order_and_by_volume(self, tier: Tier) -> None:
        for number in (10, 9, 100, 1):
            await tier.commit(manifest_of({}, number))
        await tier.commit(manifest_of({}, 2, GEMMA))
        of_llama = [SnapshotId(LLAMA, number) for number in (1, 9, 10, 100)]
        assert list(await tier.snapshots(LLAMA)) == of_llama
        assert list(await tier.snapshots(GEMMA)) == [SnapshotId(GEMMA, 2)]
        assert list(await tier.snapshots()) == [SnapshotId(GEMMA, 2), *of_llama]

    async def test_volumes_whose_names_begin_alike_are_not_confused(self, tier: Tier) -> None:
        names = [Identity("default", "llama", "1"), Identity("default", "llama", "10"), Identity("default", "l", "1")]
        for identity in names:
            await tier.commit(manifest_of({}, 1, identity))
        for identity in names:
            assert list(await tier.snapshots(identity)) == [SnapshotId(identity, 1)]

    async def test_a_manifest_never_appears_before_its_blobs(self, tier: Tier) -> None:
        files = {"weights": b"0123", "optimizer": b"4567"}
        manifest = manifest_of(files)
        with pytest.raises(IncompleteSnapshot, match="default/llama/slice-0-3@1"):
            await tier.commit(manifest)
        await tier.store([hash_bytes(b"0123")], holding(files.values()))
        with pytest.raises(IncompleteSnapshot):
            await tier.commit(manifest)
        assert list(await tier.snapshots()) == []
        with pytest.raises(NotFound):
            await tier.manifest(manifest.id)
        await tier.store(manifest.blobs, holding(files.values()))
        await tier.commit(manifest)
        assert list(await tier.snapshots()) == [manifest.id]

    async def test_store_and_commit_may_be_repeated(self, tier: Tier) -> None:
        manifest = await keep(tier, {"weights": b"0123"})
        again = await keep(tier, {"weights": b"0123"})
        assert again == manifest
        assert list(await tier.snapshots()) == [manifest.id]
        await check_producible(tier)

    async def test_another_snapshot_of_the_same_number_is_refused(self, tier: Tier) -> None:
        kept = await keep(tier, {"weights": b"0123"}, 3)
        await keep(tier, {"weights": b"4567"}, 7)
        await keep(tier, {"weights": b"0123"}, 9, GEMMA)
        with pytest.raises(SnapshotConflict, match="default/llama/slice-0-3@3") as caught:
            await keep(tier, {"weights": b"89ab"}, 3)
        assert caught.value.highest == 7
        assert await tier.manifest(kept.id) == kept
        with pytest.raises(SnapshotConflict):
            await tier.commit(replace(kept, node="b"))
        assert await tier.manifest(kept.id) == kept

    async def test_of_two_that_commit_one_number_at_once_one_wins(self, tier: Tier) -> None:
        rivals = [manifest_of({}, 5, node=f"node{number}") for number in range(6)]
        won: list[Manifest] = []
        refused: list[int] = []

        async def compete(manifest: Manifest) -> None:
            try:
                await tier.commit(manifest)
            except SnapshotConflict as error:
                refused.append(error.highest)
            else:
                won.append(manifest)

        async with trio.open_nursery() as nursery:
            for manifest in rivals:
                nursery.start_soon(compete, manifest)
        assert len(won) == 1
        assert refused == [5] * 5
        assert await tier.manifest(won[0].id) == won[0]

    @pytest.mark.parametrize(
        "damage_text",
        [
            lambda text: text[:-1],
            lambda text: text[: len(text) // 2],
            lambda text: text.replace(b"weights", b"weighed"),
            lambda text: b"",
            lambda text: encode(manifest_of({}, 2)),
            lambda text: encode(manifest_of({}, 1, GEMMA)),
        ],
        ids=["cut", "half", "changed", "empty", "of another number", "of another volume"],
    )
    @pytest.mark.usefixtures("damage")
    async def test_a_damaged_manifest_is_refused_whole(
        self, tier: Tier, damage_text: Callable[[bytes], bytes]
    ) -> None:
        manifest = await keep(tier, {"weights": b"0123"})
        await self.replace_manifest(tier, manifest.id, damage_text(encode(manifest)))
        with pytest.raises(MalformedManifest):
            await tier.manifest(manifest.id)

    async def test_verifying_reads_each_content_once_and_finds_all_good(self, tier: Tier) -> None:
        await keep(tier, {"weights": b"0123", "same": b"0123", "optimizer": b"4567890"}, 1)
        await keep(tier, {"weights": b"0123"}, 2)
        await keep(tier, {"weights": b"gemma"}, 1, GEMMA)
        report = await tier.verify()
        assert (report.snapshots, report.blobs, report.bytes, report.damaged) == (3, 3, 16, ())
        report = await tier.verify(GEMMA)
        assert (report.snapshots, report.blobs, report.bytes, report.damaged) == (1, 1, 5, ())

    @pytest.mark.parametrize("wrong", [b"012X", b"012"])
    @pytest.mark.usefixtures("damage")
    async def test_verifying_names_what_is_damaged_and_raises_nothing(self, tier: Tier, wrong: bytes) -> None:
        hurt = await keep(tier, {"weights": b"0123", "fine": b"cdef"}, 1)
        unreadable = await keep(tier, {"other": b"89ab"}, 2)
        await self.replace_content(tier, hash_bytes(b"0123"), wrong)
        await self.replace_manifest(tier, unreadable.id, b"nonsense")
        report = await tier.verify()
        assert len(report.damaged) == 2
        assert str(hurt.id) in report.damaged[0]
        assert str(unreadable.id) in report.damaged[1]

    async def test_a_dropped_snapshot_is_gone_and_dropping_again_is_no_error(self, tier: Tier) -> None:
        first, second = await keep(tier, {"a": b"1"}, 1), await keep(tier, {"a": b"2"}, 2)
        await tier.drop(first.id)
        await tier.drop(first.id)
        assert list(await tier.snapshots()) == [second.id]
        with pytest.raises(NotFound):
            await tier.manifest(first.id)
        await check_producible(tier)

    async def test_a_dropped_number_can_be_taken_again(self, tier: Tier) -> None:
        first = await keep(tier, {"a": b"1"})
        await tier.drop(first.id)
        second = await keep(tier, {"a": b"2"})
        assert await tier.manifest(second.id) == second

    async def test_collecting_removes_what_no_manifest_names_and_nothing_else(self, tier: Tier) -> None:
        first = await keep(tier, {"only here": b"1" * 5000, "shared": b"2" * 3000}, 1)
        await keep(tier, {"shared": b"2" * 3000}, 2)
        assert await tier.collect(0) == 0
        await tier.drop(first.id)
        assert await tier.missing(first.blobs) == set()
        assert await tier.collect(0) == 5000
        assert await tier.missing(first.blobs) == {hash_bytes(b"1" * 5000)}
        assert await tier.collect(0) == 0
        await check_producible(tier)

    async def test_collecting_spares_what_is_younger_than_the_grace(self, tier: Tier) -> None:
        manifest = manifest_of({"weights": b"0123"})
        await tier.store(manifest.blobs, holding([b"0123"]))
        assert await tier.collect(3600) == 0
        await tier.commit(manifest)
        await check_producible(tier)

    async def test_a_commit_never_succeeds_with_content_that_is_being_collected(self, tier: Tier) -> None:
        for number in range(1, 8):
            manifest = manifest_of({"weights": b"%d" % number, "optimizer": b"-%d" % number}, number)
            await tier.store(manifest.blobs, holding([b"%d" % number, b"-%d" % number]))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tier.collect, 0)
                nursery.start_soon(self._commit_if_complete, tier, manifest)
            await check_producible(tier)

    @staticmethod
    async def _commit_if_complete(tier: Tier, manifest: Manifest) -> None:
        try:
            await tier.commit(manifest)
        except IncompleteSnapshot:
            return
