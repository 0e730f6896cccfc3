"""Restoring what is left of a snapshot some of whose content is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.errors import TierError, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.replicate.staging import StagingDirectory, make_tree, without
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_task import Task
from tests.cli.conftest import run
from tests.harness.snapshots import holding

IDENTITY = Identity("default", "llama", "0")
URL = "gs://checkpoints/team"
BAD, GOOD = b"0123", b"4567"


def snapshot() -> Manifest:
    entries = [Entry(b"", Kind.DIRECTORY, 0o755)]
    for name, content in ((b"bad", BAD), (b"good", GOOD), (b"same", BAD)):
        entries.append(Entry(name, Kind.FILE, 0o644, blob=hash_bytes(content)))
    entries.append(Entry(b"twin", Kind.HARDLINK, target=b"bad"))
    return Manifest(SnapshotId(IDENTITY, 1), Lineage("llama"), "a", 1, tuple(entries))


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A bucket with a snapshot of which one content was damaged where it lies."""
    async with running_emulator("checkpoints") as emulator:
        tier, manifest, damaged = BucketTier(URL, emulator.endpoint), snapshot(), layout.blob_object(hash_bytes(BAD))
        await tier.store(manifest.blobs, holding([BAD, GOOD]))
        await tier.commit(manifest)
        stored = tier._objects.head(damaged)
        assert stored is not None
        tier._objects.put(damaged, MemoryContent(b"012X"), stored.generation, lambda _: None, Task(1).stop)
        await tier.aclose()
        yield emulator


def files_in(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tree.iterdir()}


async def test_what_is_damaged_fails_alone_where_a_part_is_asked_for(emulator: Emulator, tmp_path: Path) -> None:
    place = ("--bucket", URL, "--endpoint", emulator.endpoint, "--identity", str(IDENTITY), "--snapshot", "1")
    whole = await run("restore", *place, "--to", str(tmp_path / "tree"))
    assert (whole.returncode, whole.stdout) == (1, "")
    assert "the content of 'bad' and 2 more could not be had intact" in whole.stderr
    assert "--partial restores what is" in whole.stderr
    assert list(tmp_path.iterdir()) == []
    part = await run("restore", *place, "--partial", "--to", str(tmp_path / "tree"))
    assert part.returncode == 1
    assert "1 file, 4 B" in part.stdout
    assert [name for name in ("bad", "good", "same", "twin") if f"{name}: left out" in part.stderr] == [
        "bad",
        "same",
        "twin",
    ]
    assert files_in(tmp_path / "tree") == {"good": GOOD}


async def test_content_that_may_be_had_later_is_not_left_out(tmp_path: Path) -> None:
    async def fetch(staging: StagingDirectory) -> dict[Blob, TierError]:
        staging.take(hash_bytes(GOOD), memoryview(GOOD))
        return {hash_bytes(BAD): TierUnavailable("it is being repaired")}

    with pytest.raises(TierUnavailable, match=r"being repaired.*try again later"):
        await make_tree(snapshot(), str(tmp_path / "tree"), fetch, partial=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_goes_with_all_of_its_names_and_nothing_else() -> None:
    left = without(snapshot(), [hash_bytes(BAD)])
    assert [entry.path for entry in left.entries] == [b"", b"good"]
    assert without(snapshot(), []) == snapshot()
