"""Small content in the bucket: many files in few objects, each restorable for itself."""

from __future__ import annotations

import random

import pytest

from fuse_tier.errors import (
    Damaged,
    NotFound,
)
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.snapshots import GEMMA, check_producible, holding, keep
from tests.tiers.opened import PREFIX, Open, OpenedTier, fetched
from tests.tiers.opened import opened as opened
from tests.tiers.opened import tier as tier

MANY = 2000


def small_files(rng: random.Random, count: int = MANY) -> dict[str, bytes]:
    return {f"step-{number}": rng.randbytes(rng.randrange(4096)) for number in range(count)}


async def test_many_small_files_become_few_objects_and_come_back_one_by_one(
    tier: OpenedTier, opened: Open, rng: random.Random
) -> None:
    files = small_files(rng)
    manifest = await keep(tier, files)
    assert len(tier.names()) < 10
    another = opened()
    assert await another.manifest(manifest.id) == manifest
    for content in rng.sample(sorted(files.values()), 20):
        assert await fetched(another, hash_bytes(content)) == {hash_bytes(content): content}
    await check_producible(opened())


async def test_small_files_that_another_process_packed_are_not_stored_again(
    tier: OpenedTier, opened: Open, rng: random.Random
) -> None:
    files = small_files(rng, 500)
    await keep(tier, files)
    packs = tier.names("packs/")
    await keep(opened(), files, identity=GEMMA)
    changed = files | {f"step-{number}": rng.randbytes(1000) for number in range(10)}
    await keep(opened(), changed, 2)
    assert tier.names("packs/") == packs
    assert len(tier.names("blobs/")) == 10
    await check_producible(opened())


async def test_a_pack_is_kept_while_anything_in_it_is_named(
    tier: OpenedTier, opened: Open, rng: random.Random
) -> None:
    files = small_files(rng, 300)
    first = await keep(tier, files, 1)
    second = await keep(tier, {"last": files["step-299"]}, 2)
    before = tier.names("packs/")
    await tier.drop(first.id)
    await opened().collect(0)
    (pack,) = tier.names("packs/")
    assert pack in before
    assert files["step-299"] in tier.bucket.blob(PREFIX + pack).download_as_bytes()
    await check_producible(opened())
    await tier.drop(second.id)
    assert await opened().collect(0) > 0
    assert tier.names() == ["fuse-tier.json"]
    assert len(await tier.missing(first.blobs)) in (0, len(first.blobs))  # another process removed it: see collect
    assert await opened().missing(first.blobs) == first.blobs


async def test_a_damaged_pack_costs_only_what_is_damaged_in_it(
    tier: OpenedTier, opened: Open, rng: random.Random
) -> None:
    files = {f"{number}": rng.randbytes(1000) for number in range(100)}
    manifest = await keep(tier, files)
    victim = hash_bytes(files["42"])
    contents = {pack: tier.bucket.blob(PREFIX + pack).download_as_bytes() for pack in tier.names("packs/")}
    ((pack, content),) = ((pack, content) for pack, content in contents.items() if files["42"] in content)
    changed = bytearray(content)
    changed[content.index(files["42"]) + 7] ^= 1
    tier.put(pack, bytes(changed))
    result = await opened().fetch(manifest.blobs, MemoryBlobs())
    assert result.arrived == manifest.blobs - {victim}
    assert isinstance(result.failed[victim], Damaged)
    report = await opened().verify()
    assert (report.snapshots, report.blobs, len(report.damaged)) == (1, 100, 1)
    assert victim.name in report.damaged[0]


@pytest.mark.parametrize("cut", [1, 5000, 100_000])
async def test_a_truncated_pack_is_never_read_as_something_else(
    tier: OpenedTier, opened: Open, rng: random.Random, cut: int
) -> None:
    manifest = await keep(tier, {f"{number}": rng.randbytes(1500) for number in range(100)})
    for pack in tier.names("packs/"):  # where one ends depends on the content
        tier.put(pack, tier.bucket.blob(PREFIX + pack).download_as_bytes()[:-cut])
    for process in (tier, opened()):  # one knows where everything was, one does not
        result = await process.fetch(manifest.blobs, MemoryBlobs())
        assert not result.arrived
        assert all(isinstance(error, Damaged | NotFound) for error in result.failed.values())


async def test_what_a_pack_held_is_found_again_after_it_was_packed_anew(
    tier: OpenedTier, opened: Open, rng: random.Random
) -> None:
    files = small_files(rng, 200)
    blobs = [hash_bytes(content) for content in files.values()]
    await tier.store(blobs, holding(files.values()))
    another = opened()
    assert len(await fetched(another, *blobs)) == len(set(blobs))
    await tier.collect(0)
    await tier.store(blobs[:100], holding(files.values()))
    await tier.store(blobs[100:], holding(files.values()))
    assert len(await fetched(another, *blobs)) == len(set(blobs))
