"""The bucket as a tier: the contract, the layout, and who else is there."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.errors import (
    ConfigError,
    MalformedManifest,
    NotFound,
    SnapshotConflict,
    TierRefused,
    TierUnavailable,
)
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import encode
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.bucket import SAFE_GRACE_SECONDS, BucketTier
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import GEMMA, check_producible, holding, keep, manifest_of
from tests.tiers.contract import TierContract
from tests.tiers.opened import BUCKET, PATIENCE, PREFIX, Open, OpenedTier, fetched
from tests.tiers.opened import opened as opened
from tests.tiers.opened import tier as tier


class TestBucketTier(TierContract):
    announced = ("bucket.object.replaced",)

    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        assert isinstance(tier, OpenedTier)
        tier.put(layout.blob_object(blob), content)

    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        assert isinstance(tier, OpenedTier)
        tier.put(layout.manifest_object(snapshot), text)


async def test_the_layout_is_the_documented_one(tier: OpenedTier) -> None:
    manifest = await keep(tier, {"weights": b"0123"}, 12)
    blob = hash_bytes(b"0123")
    assert tier.names() == [
        f"blobs/{blob.name[:2]}/{blob.name}",
        "fuse-tier.json",
        "manifests/default/llama/slice-0-3/0000000000000000012.manifest",
    ]
    assert tier.bucket.blob(PREFIX + layout.manifest_object(manifest.id)).download_as_bytes() == encode(manifest)
    marker = json.loads(tier.bucket.blob(PREFIX + "fuse-tier.json").download_as_bytes())
    assert marker["fuse_tier_bucket"] == 1


@pytest.mark.parametrize(
    "url",
    ["", "checkpoints", "s3://checkpoints", "gs://", "gs://Checkpoints", "gs://c", "gs://checkpoints/a//b",
     "gs://checkpoints/../b", "gs://checkpoints/./b", "gs://checkpoints/a*", "gs://checkpoints/a\nb",
     "gs://checkpoints/a#1", "gs://checkpoints/" + "a/" * 300],
)  # fmt: skip
def test_a_url_that_ordinary_tools_could_not_copy_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="gs://"):
        BucketTier(url)


def test_making_a_tier_asks_nothing_of_the_bucket_and_names_it() -> None:
    assert BucketTier("gs://checkpoints/a/", "http://127.0.0.1:1").place == "gs://checkpoints/a"
    assert BucketTier("gs://checkpoints/", "http://127.0.0.1:1").place == "gs://checkpoints"


async def test_an_emulator_that_is_down_is_named_and_found_again_when_it_is_back(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    async with running_emulator(BUCKET, directory=str(tmp_path)) as emulator:
        tier = OpenedTier(f"gs://{BUCKET}/{PREFIX}", emulator.endpoint)
        manifest = await keep(tier, {"weights": b"0123", "optimizer": b"4567"})
    blob = hash_bytes(b"0123")
    for attempt in (
        tier.snapshots,
        lambda: tier.manifest(manifest.id),
        lambda: tier.missing([hash_bytes(b"new")]),
        lambda: tier.store([hash_bytes(b"new")], holding([b"new"])),
        lambda: tier.drop(manifest.id),
        lambda: tier.collect(0),
        tier.verify,
    ):
        with pytest.raises(TierUnavailable, match=f"{emulator.endpoint} does not answer .*Connection refused"):
            await attempt()
    failed = (await tier.fetch(manifest.blobs, MemoryBlobs())).failed
    assert failed.keys() == manifest.blobs
    assert all(isinstance(error, TierUnavailable) for error in failed.values())
    async with running_emulator(BUCKET, port=emulator.port, directory=str(tmp_path)):
        assert await fetched(tier, blob) == {blob: b"0123"}
        await check_producible(tier)
        await tier.aclose()


async def test_an_outage_shorter_than_our_patience_is_not_noticed(tmp_path: Path) -> None:
    async with running_emulator(BUCKET, directory=str(tmp_path)) as emulator:
        tier = BucketTier(f"gs://{BUCKET}", emulator.endpoint, patience=20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, tier, {"weights": b"0123"})
        await trio.sleep(0.3)
        async with running_emulator(BUCKET, port=emulator.port, directory=str(tmp_path)):
            while not await tier.snapshots():
                await trio.lowlevel.checkpoint()
            await check_producible(tier)
            await tier.aclose()


async def test_a_bucket_that_does_not_exist_is_refused_by_name(emulator: Emulator) -> None:
    tier = BucketTier("gs://nowhere/a", emulator.endpoint, patience=PATIENCE)
    for attempt in (
        tier.snapshots,
        lambda: tier.missing([hash_bytes(b"")]),
        lambda: tier.fetch([hash_bytes(b"")], MemoryBlobs()),
        lambda: keep(tier, {"weights": b"0123"}),
    ):
        with pytest.raises(TierRefused, match=r"gs://nowhere does not exist .*`bucket.url`"):
            await attempt()
    await tier.aclose()


async def test_names_that_the_service_would_not_take_are_refused_with_what_to_do(emulator: Emulator) -> None:
    tier = BucketTier(f"gs://{BUCKET}/{'ü' * 250}", emulator.endpoint)
    long = Identity("n" * 63, "w" * 250, "r" * 250)
    with pytest.raises(TierRefused, match=r"longer than the 1024 bytes .*: choose a shorter prefix in `bucket\.url`"):
        await keep(tier, {"weights": b"0123"}, identity=long)
    await keep(tier, {"weights": b"0123"})
    await tier.aclose()


@pytest.mark.parametrize(
    ("text", "message"),
    [(b'{"fuse_tier_bucket": 2}', "newer version"), (b"{}", "none of ours"), (b"\xff", "none of ours")],
)
async def test_a_place_of_another_layout_is_refused(tier: OpenedTier, text: bytes, message: str) -> None:
    tier.put(layout.MARKER, text)
    with pytest.raises(TierRefused, match=message):
        await tier.snapshots()
    with pytest.raises(TierRefused, match=message):
        await keep(tier, {"weights": b"0123"})
    assert tier.names() == [layout.MARKER]


async def test_foreign_objects_are_left_alone(tier: OpenedTier, opened: Open) -> None:
    blob = hash_bytes(b"0123")
    foreign = [
        "notes.txt",
        "blobs/notes.txt",
        f"blobs/zz/{blob.name}",  # not where it belongs
        f"blobs/{blob.name}",
        f"packs/{blob.name}",
        "packs/notes.zip",
        "manifests/default/llama/slice-0-3/1.manifest",
        "manifests/default/llama/slice-0-3/0000000000000000002.manifest.old",
        "manifests/default/llama/0000000000000000003.manifest",
        "manifests/default/../llama/0000000000000000003.manifest",
        "manifests/notes.manifest",
    ]
    for name in foreign:
        tier.put(name, b"mine")
    manifest = await keep(tier, {"weights": b"0123"})
    assert list(await opened().snapshots()) == [manifest.id]
    await tier.drop(manifest.id)
    await opened().collect(0)
    assert sorted(tier.names()) == sorted([*foreign, layout.MARKER])


async def test_a_volume_next_door_is_not_touched(tier: OpenedTier, emulator: Emulator) -> None:
    neighbour = OpenedTier(f"gs://{BUCKET}/{PREFIX.rstrip('/')}-2", emulator.endpoint)
    kept = await keep(neighbour, {"weights": b"0123"})
    await tier.collect(0)
    assert list(await tier.snapshots()) == []
    assert list(await neighbour.snapshots()) == [kept.id]
    await check_producible(neighbour)
    await neighbour.aclose()


async def test_of_two_processes_that_commit_one_number_one_wins_and_both_end_well(opened: Open) -> None:
    rivals = [opened() for _ in range(4)]
    outcomes: list[str] = []

    async def compete(tier: BucketTier, content: bytes) -> None:
        try:
            await keep(tier, {"weights": content})
        except SnapshotConflict as error:
            assert error.highest == 1
            outcomes.append("refused")
        else:
            outcomes.append("won")

    async with trio.open_nursery() as nursery:
        for number, rival in enumerate(rivals):
            nursery.start_soon(compete, rival, b"%d" % number)
    assert sorted(outcomes) == ["refused"] * 3 + ["won"]
    await check_producible(opened())


async def test_two_processes_may_commit_the_same_snapshot(opened: Open) -> None:
    one, other = opened(), opened()
    manifest = await keep(one, {"weights": b"0123"})
    assert await keep(other, {"weights": b"0123"}) == manifest


async def test_a_damaged_object_is_replaced_by_who_stores_that_blob_anew(
    tier: OpenedTier, opened: Open, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bucket.object.replaced")
    manifest = await keep(tier, {"weights": b"0123"})
    blob = hash_bytes(b"0123")
    tier.put(layout.blob_object(blob), b"012")
    assert await opened().missing([blob]) == {blob}
    await opened().store([blob], holding([b"0123"]))
    assert await fetched(opened(), blob) == {blob: b"0123"}
    assert (await opened().verify()).damaged == ()
    assert list(await opened().snapshots()) == [manifest.id]


async def test_verify_names_what_is_damaged_and_what_is_lacking(tier: OpenedTier, opened: Open) -> None:
    await keep(tier, {"a": b"0123", "b": b"4567", "c": b"89ab"}, 1)
    await keep(tier, {"a": b"0123"}, 2)
    cut = await keep(tier, {"a": b"0123"}, 3)
    await keep(tier, {"a": b"0123"}, 4, GEMMA)
    assert (await opened().verify()).damaged == ()
    tier.put(layout.blob_object(hash_bytes(b"4567")), b"4568")
    tier.bucket.blob(PREFIX + layout.blob_object(hash_bytes(b"89ab"))).delete()
    tier.put(layout.manifest_object(cut.id), encode(cut)[:-1])
    report = await opened().verify()
    assert (report.snapshots, report.blobs, report.bytes) == (4, 3, 12)
    assert [line.split(": ")[:2] for line in report.damaged[:2]] == [
        ["default/llama/slice-0-3@1", "b"],
        ["default/llama/slice-0-3@1", "c"],
    ]
    assert len(report.damaged) == 3
    for line in (hash_bytes(b"4567").name, hash_bytes(b"89ab").name, f"{cut.id}"):
        assert any(line in damaged for damaged in report.damaged)
    assert (await opened().verify(GEMMA)).damaged == ()


async def test_nothing_is_collected_while_a_manifest_cannot_be_read(tier: OpenedTier, opened: Open) -> None:
    first = await keep(tier, {"a": b"0123"}, 1)
    second = await keep(tier, {"a": b"4567"}, 2)
    await tier.drop(first.id)
    tier.put(layout.manifest_object(second.id), encode(second)[:100])
    with pytest.raises(MalformedManifest, match=r"nothing is collected.*delete the object"):
        await opened().collect(0)
    assert len(tier.names("blobs/")) == 2
    await tier.drop(second.id)
    assert await opened().collect(0) == 8


async def test_what_a_writer_relies_on_counts_as_young_again(
    tier: OpenedTier, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of({"weights": b"0123"})
    await tier.store(manifest.blobs, holding([b"0123"]))
    later = time.time() + 7200
    monkeypatch.setattr(Objects, "now", lambda _: later)
    writer, collector = opened(), opened()
    assert await writer.missing(manifest.blobs) == set()
    assert await collector.collect(SAFE_GRACE_SECONDS) == 0
    await writer.commit(manifest)
    await check_producible(tier)
    await writer.drop(manifest.id)
    later += SAFE_GRACE_SECONDS + 1
    assert await collector.collect(SAFE_GRACE_SECONDS) == 4


async def test_an_incomplete_source_leaves_nothing_that_is_named(tier: OpenedTier, rng: random.Random) -> None:
    contents = [rng.randbytes(100) for _ in range(100)]
    with pytest.raises(NotFound):
        await tier.store([hash_bytes(content) for content in contents], holding(contents[:-1]))
    assert list(await tier.snapshots()) == []


async def test_a_large_file_arrives_whole_and_in_pieces(tier: OpenedTier, rng: random.Random) -> None:
    content = rng.randbytes(1 << 20) * 24 + b"and an end"
    moved: list[int] = []
    blob = hash_bytes(content)
    await tier.store([blob], holding([content]), moved.append)
    assert sum(moved) == len(content)
    assert max(moved) <= 1 << 20
    assert await fetched(tier, blob) == {blob: content}
