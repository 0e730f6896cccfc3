"""What every implementation of the tier interface does, whatever it is made of.

To put a tier to it, derive a class and give it the fixture ``tier`` (an empty one) and the two methods that
damage what the tier keeps::

    class TestMyTier(TierContract):
        @pytest.fixture
        async def tier(self, ...) -> AsyncIterator[Tier]: ...
        async def replace_content(self, tier, blob, content): ...
        async def replace_manifest(self, tier, snapshot, text): ...

Log lines that the damage provokes are named in ``announced``.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import ClassVar

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import (
    Damaged,
    IncompleteSnapshot,
    MalformedManifest,
    NotFound,
    SnapshotConflict,
    TierFull,
)
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest, encode
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.logs import ExpectedLogs

LLAMA = Identity("default", "llama", "slice-0-3")
GEMMA = Identity("default", "gemma", "0")


def manifest_of(files: dict[str, bytes], number: int = 1, identity: Identity = LLAMA, node: str = "a") -> Manifest:
    """The snapshot of a tree of one directory that has these files."""
    entries = [Entry(b"", Kind.DIRECTORY, 0o755)]
    entries += [
        Entry(name.encode(), Kind.FILE, 0o644, blob=hash_bytes(content)) for name, content in sorted(files.items())
    ]
    return Manifest(SnapshotId(identity, number), Lineage("llama"), node, 1_700_000_000 * 10**9, tuple(entries))


def holding(contents: Iterable[bytes]) -> MemoryBlobs:
    """A source of these contents."""
    source = MemoryBlobs()
    source.contents = {hash_bytes(content): content for content in contents}
    return source


async def keep(tier: Tier, files: dict[str, bytes], number: int = 1, identity: Identity = LLAMA) -> Manifest:
    """Stores and commits a snapshot of these files."""
    manifest = manifest_of(files, number, identity)
    await tier.store(manifest.blobs, holding(files.values()))
    await tier.commit(manifest)
    return manifest


async def check_producible(tier: Tier) -> None:
    """Everything that a tier lists is there, every byte of it."""
    for snapshot in await tier.snapshots():
        manifest = await tier.manifest(snapshot)
        assert manifest.id == snapshot
        shelf = MemoryBlobs()
        fetched = await tier.fetch(manifest.blobs, shelf)
        assert not fetched.failed
        assert fetched.arrived == manifest.blobs == shelf.contents.keys()
        assert all(hash_bytes(content) == blob for blob, content in shelf.contents.items())


async def cancel_after(steps: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Runs ``work`` and cancels it after so many turns of the event loop; says whether it had ended before."""
    ended = False

    async def run() -> None:
        nonlocal ended
        await work()
        ended = True
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return ended


class TierContract(ABC):
    """The contract of ``fuse_tier/tiers/base.py``, line by line."""

    announced: ClassVar[tuple[str, ...]] = ()
    """Events that the tier logs as a warning or error when it meets damage."""

    @abstractmethod
    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        """Puts other bytes where the tier keeps a blob."""

    @abstractmethod
    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        """Puts another text where the tier keeps a manifest."""

    @pytest.fixture
    def damage(self, expected_logs: ExpectedLogs) -> None:
        """For tests that damage the tier: announces what it may log about it."""
        for event in self.announced:
            expected_logs.allow(event)

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
