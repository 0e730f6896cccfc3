from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.tiers.bucket import BucketTier
from tests.harness.snapshots import holding

SCRIPT = Path(__file__).parents[2] / "examples" / "restore_from_bucket.py"
TIME = 1_700_000_000_123_456_789
LARGE = b"weights" * 500_000
CONTENTS = {b"step 1/%d" % number: b"small %d" % number for number in range(150)}
CONTENTS |= {b"step 1/w\xffights.bin": LARGE, b"step 1/100%": b"", "größe".encode(): b"4096", b"a&b [c].txt": b"#"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with running_emulator("checkpoints") as emulator:
        yield emulator


def tree(number: int) -> Manifest:
    entries = [
        Entry(b"", Kind.DIRECTORY, 0o755, mtime_ns=TIME),
        Entry(b"step 1", Kind.DIRECTORY, 0o500, mtime_ns=TIME + 1),
        Entry(b"latest", Kind.SYMLINK, 0o777, mtime_ns=TIME, target=b"step 1/w\xffights.bin"),
        Entry(b"zz again", Kind.HARDLINK, target="größe".encode()),
        Entry(b"zz pipe", Kind.FIFO, 0o600, mtime_ns=TIME),
    ]
    entries += [
        Entry(path, Kind.FILE, 0o640, mtime_ns=TIME + 2, blob=hash_bytes(content))
        for path, content in CONTENTS.items()
    ]
    entries.sort(key=lambda entry: entry.path)
    snapshot = SnapshotId(Identity("default", "llama", "0"), number)
    return Manifest(snapshot, Lineage("llama"), "a", TIME, tuple(entries))


def leave_notes(emulator: Emulator) -> None:
    """Objects of somebody else's, where ours are looked for."""
    client = storage.Client("tests", AnonymousCredentials(), client_options={"api_endpoint": emulator.endpoint})  # type: ignore[no-untyped-call]
    for name in ("packs/notes.zip", "manifests/default/llama/0/notes.manifest"):
        client.bucket("checkpoints").blob(f"team/run 7/{name}").upload_from_string(b"notes")
    client.close()


def restore(emulator: Emulator, url: str, snapshot: str, directory: Path) -> str:
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": emulator.endpoint}
    command = [sys.executable, str(SCRIPT), url, snapshot, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(manifest: Manifest, root: Path) -> None:
    for entry in manifest.entries:
        path = os.path.join(os.fsencode(root), entry.path)
        found = os.lstat(path)
        if entry.kind is Kind.SYMLINK:
            assert os.readlink(path) == entry.target
        elif entry.kind is Kind.HARDLINK:
            assert found.st_ino == os.stat(root / "größe").st_ino
        else:
            assert (found.st_mode & 0o7777, found.st_mtime_ns) == (entry.mode, entry.mtime_ns)
        if entry.kind is Kind.FILE:
            with open(path, "rb") as file:
                assert file.read() == CONTENTS[entry.path]
    names = sum(len(directories) + len(files) for _, directories, files in os.walk(root))
    assert names == len(manifest.entries) - 1


async def test_the_example_gives_back_the_tree_with_googles_client_alone(emulator: Emulator, tmp_path: Path) -> None:
    url = "gs://checkpoints/team/run 7"
    tier = BucketTier(url, emulator.endpoint)
    manifest = tree(2)
    await tier.store(manifest.blobs, holding(CONTENTS.values()))
    await tier.commit(manifest)
    older = replace(manifest, id=SnapshotId(manifest.id.identity, 1), entries=manifest.entries[:1])
    await tier.commit(older)
    await tier.aclose()
    await trio.to_thread.run_sync(leave_notes, emulator)

    said = await trio.to_thread.run_sync(restore, emulator, url, "default/llama/0", tmp_path / "newest")
    assert f"{len(manifest.entries)} names restored" in said
    compare(manifest, tmp_path / "newest")
    await trio.to_thread.run_sync(restore, emulator, url, "default/llama/0@1", tmp_path / "older")
    assert os.listdir(tmp_path / "older") == []
