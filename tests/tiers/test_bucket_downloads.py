"""How content comes out of a bucket: by ranges, checked, and by a second request where the first one is slow."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from functools import partial

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity
from fuse_tier.manifest import encode
from fuse_tier.tiers import bucket_download, bucket_fetch, bucket_parts
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_checksums import combined, crc32c_in, crc32c_text
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_packs import divide
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.snapshots import cancel_after, holding, keep
from tests.tiers.conftest import PATIENCE_SECONDS
from tests.tiers.faulty_http import Fault, Proxy

KIB = 1 << 10
DOWNLOAD = "/download/"
BLOBS = "/download/storage/v1/b/checkpoints/o/a%2Fblobs"
PACKS = "/download/storage/v1/b/checkpoints/o/a%2Fpacks"
MANIFESTS = "/download/storage/v1/b/checkpoints/o/a%2Fmanifests"


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> int:
    """Ranges of so many bytes, so that little content has many of them."""
    monkeypatch.setattr(bucket_fetch, "RANGE", 256 * KIB)
    monkeypatch.setattr(bucket_parts, "SPLIT_FROM", 512 * KIB)
    return 256 * KIB


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is slow is soon slow."""
    monkeypatch.setattr(bucket_download, "HEDGE_SECONDS", 0.1)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_pieces_give_that_of_the_whole(first: bytes, second: bytes) -> None:
    value = google_crc32c.value
    assert combined(value(first), value(second), len(second)) == value(first + second)


def test_a_checksum_is_read_out_of_the_header() -> None:
    assert crc32c_in("crc32c=AAAAAA==,md5=1B2M2Y8AsgTpgAmY7PhCfg==") == "AAAAAA==" == crc32c_text(0)
    assert crc32c_in("md5=1B2M2Y8AsgTpgAmY7PhCfg==, crc32c=yZRlqg==") == "yZRlqg=="
    assert crc32c_in("md5=1B2M2Y8AsgTpgAmY7PhCfg==") is None


async def test_large_content_comes_by_ranges_each_once(
    tier: BucketTier, proxy: Proxy, small_ranges: int, rng: random.Random
) -> None:
    content = rng.randbytes(5 * small_ranges - 3)
    await tier.store([hash_bytes(content)], holding([content]))
    proxy.requests.clear()
    sink, moved = MemoryBlobs(), list[int]()
    await tier.fetch([hash_bytes(content)], sink, moved.append)
    assert sink.contents == {hash_bytes(content): content}
    assert sum(moved) == len(content)
    assert len(proxy.requests) == 5


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("after", [0, 100_000])
async def test_ranges_survive_what_passes(
    tier: BucketTier, proxy: Proxy, small_ranges: int, rng: random.Random, times: int, after: int
) -> None:
    content = rng.randbytes(6 * small_ranges)
    await tier.store([hash_bytes(content)], holding([content]))
    proxy.faults += [
        Fault("GET", BLOBS, cut_answer_after=after, times=times),
        Fault("GET", BLOBS, short_answer=after, times=times),
        Fault("GET", BLOBS, status=503, times=times),
        Fault("GET", BLOBS, status=429, times=times),
    ]
    sink = MemoryBlobs()
    assert not (await tier.fetch([hash_bytes(content)], sink)).failed
    assert sink.contents == {hash_bytes(content): content}
    assert all(fault.times == 0 for fault in proxy.faults)


@pytest.mark.parametrize("after", [0, 1, 700_000])
async def test_a_read_that_stalls_is_overtaken_by_a_second_one(
    tier: BucketTier, proxy: Proxy, rng: random.Random, after: int, soon: None
) -> None:
    content = rng.randbytes(1_000_000)
    await tier.store([hash_bytes(content)], holding([content]))
    proxy.faults.append(Fault("GET", BLOBS, stall_answer_after=after))
    proxy.requests.clear()
    sink, moved = MemoryBlobs(), list[int]()
    await tier.fetch([hash_bytes(content)], sink, moved.append)
    assert sink.contents == {hash_bytes(content): content}
    assert sum(moved) == len(content)
    assert len(proxy.requests) == 2  # the first is still under way


async def test_small_files_in_a_pack_do_not_wait_for_a_stalled_read(
    tier: BucketTier, proxy: Proxy, rng: random.Random, soon: None
) -> None:
    contents = [rng.randbytes(2000) for _ in range(100)]
    await tier.store([hash_bytes(content) for content in contents], holding(contents))
    proxy.faults.append(Fault("GET", PACKS, stall_answer_after=50_000))
    sink = MemoryBlobs()
    await tier.fetch([hash_bytes(content) for content in contents], sink)
    assert sink.contents == holding(contents).contents


async def test_ranges_that_stall_together_are_all_overtaken(
    tier: BucketTier, proxy: Proxy, small_ranges: int, rng: random.Random, soon: None
) -> None:
    content = rng.randbytes(4 * small_ranges)
    await tier.store([hash_bytes(content)], holding([content]))
    proxy.faults.append(Fault("GET", BLOBS, stall_answer_after=1000, times=3))
    sink = MemoryBlobs()
    await tier.fetch([hash_bytes(content)], sink)
    assert sink.contents == {hash_bytes(content): content}


@pytest.mark.parametrize("folder", [BLOBS, PACKS, MANIFESTS])
async def test_what_was_changed_on_its_way_is_read_again(
    tier: BucketTier, proxy: Proxy, rng: random.Random, folder: str
) -> None:
    files = {"weights": rng.randbytes(1_000_000)} | {f"{number}": rng.randbytes(900) for number in range(100)}
    manifest = await keep(tier, files)
    fault = Fault("GET", folder, change_answer=True)
    proxy.faults.append(fault)
    another = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=PATIENCE_SECONDS)
    assert await another.manifest(manifest.id) == manifest
    sink = MemoryBlobs()
    assert not (await another.fetch(manifest.blobs, sink)).failed
    assert sink.contents == holding(files.values()).contents
    assert fault.times == 0
    await another.aclose()


async def test_what_is_damaged_where_it_lies_is_named_and_fails_alone(
    tier: BucketTier, proxy: Proxy, rng: random.Random, small_ranges: int
) -> None:
    good, bad = rng.randbytes(4 * small_ranges), rng.randbytes(4 * small_ranges)
    manifest = await keep(tier, {"good": good, "bad": bad})
    stored = tier._objects.head(layout.blob_object(hash_bytes(bad)))
    assert stored is not None
    wrong = MemoryContent(bad[:-1] + bytes([bad[-1] ^ 1]))
    tier._objects.put(stored.name, wrong, stored.generation, lambda _: None, proxy.closing)
    sink = MemoryBlobs()
    result = await tier.fetch(manifest.blobs, sink)
    assert sink.contents == {hash_bytes(good): good}
    assert isinstance(result.failed[hash_bytes(bad)], Damaged)
    assert hash_bytes(bad).name in str(result.failed[hash_bytes(bad)])


async def test_an_object_that_is_deleted_under_a_restore_fails_alone(
    tier: BucketTier, proxy: Proxy, rng: random.Random, small_ranges: int
) -> None:
    kept, gone = rng.randbytes(1000), rng.randbytes(6 * small_ranges)
    manifest = await keep(tier, {"kept": kept, "gone": gone})

    def delete() -> None:
        stored = tier._objects.head(layout.blob_object(hash_bytes(gone)))
        if stored is not None:
            tier._objects.delete(stored)

    two_ranges_that_come = Fault("GET", hash_bytes(gone).name, times=2)
    proxy.faults += [two_ranges_that_come, Fault("GET", hash_bytes(gone).name, first=delete)]
    sink = MemoryBlobs()
    result = await tier.fetch(manifest.blobs, sink)
    assert sink.contents == {hash_bytes(kept): kept}
    assert isinstance(result.failed[hash_bytes(gone)], NotFound)


async def test_one_small_file_of_many_costs_one_ranged_read_of_it_whatever_else_is_in_the_bucket(
    tier: BucketTier, proxy: Proxy, rng: random.Random
) -> None:
    files = {f"{number}": rng.randbytes(1000) for number in range(300)}
    manifest = await keep(tier, files)
    for number in range(5):
        others = {f"{index}": rng.randbytes(1000) for index in range(100)}
        await keep(tier, others, 1, Identity("default", "other", str(number)))
    another = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=PATIENCE_SECONDS)
    await another.manifest(manifest.id)
    proxy.requests.clear()
    packs = len(list(divide(manifest.blobs)))
    for name, expected in (("7", packs + 2), ("8", 1)):  # the manifest's word and its packs' indexes come first, once
        sink, blob = MemoryBlobs(), hash_bytes(files[name])
        await another.fetch([blob], sink)
        assert sink.contents == {blob: files[name]}
        assert len(proxy.requests) == expected
        proxy.requests.clear()
    await another.aclose()


async def test_without_its_word_about_packs_a_snapshot_is_found_all_the_same(
    tier: BucketTier, proxy: Proxy, rng: random.Random
) -> None:
    files = {f"{number}": rng.randbytes(1000) for number in range(100)}
    manifest = await keep(tier, files)
    name = layout.manifest_object(manifest.id)
    stored = tier._objects.head(name)
    assert stored is not None
    assert len(stored.packs) == len(list(divide(manifest.blobs)))
    tier._objects.put(name, MemoryContent(encode(manifest)), stored.generation, lambda _: None, proxy.closing)
    another = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=PATIENCE_SECONDS)
    await another.manifest(manifest.id)
    sink = MemoryBlobs()
    await another.fetch(manifest.blobs, sink)
    assert sink.contents == holding(files.values()).contents
    await another.aclose()


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 1 << 62)), max_size=300, unique=True))
def test_what_metadata_say_of_packs_is_read_as_it_was_written_and_fits(packs: list[tuple[bytes, int]]) -> None:
    blobs = {Blob(digest, size) for digest, size in packs}
    text = layout.packs_text(blobs)
    assert len(text) <= 6000
    read = layout.packs_in(text)
    assert set(read) <= blobs
    assert len(read) == len(blobs) or len(text) > 5900
    assert layout.packs_in(text + ",nonsense,../x") == read


async def test_a_fetch_may_be_cancelled_at_any_moment(
    tier: BucketTier, rng: random.Random, small_ranges: int
) -> None:
    contents = [rng.randbytes(4 * small_ranges), *(rng.randbytes(1000) for _ in range(70))]
    blobs = [hash_bytes(content) for content in contents]
    await tier.store(blobs, holding(contents))
    for steps in range(0, 700, 20):
        sink = MemoryBlobs()
        await cancel_after(steps, partial(tier.fetch, blobs, sink))
        assert sink.contents.items() <= holding(contents).contents.items()
        assert landing_files() == 0


def landing_files() -> int:
    """How many of what is landing in memory are open."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("memfd:" in target for target in targets)
