"""What the benchmarks of the bucket tier work with: files as blobs, an emulator, google-cloud-storage beside it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fuse_tier.bench.nodes import IDENTITY, in_thread
from fuse_tier.bench.places import GIB, tmpfs, warm, write_files
from fuse_tier.blobs import Blob, Incoming
from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.errors import Damaged
from fuse_tier.files import write_new
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.tiers.bucket import BucketTier

BUCKET = "checkpoints"

Loop = Callable[[Any, list[Path]], float]
"""Moves files to or from a bucket of google-cloud-storage's, and gives the seconds that took."""


class Directory:
    """Files as a source and a sink of blobs, by what is in them."""

    def __init__(self, source: Path, target: Path) -> None:
        self.target = target
        self.paths: dict[Blob, Path] = {}
        for path in sorted(source.iterdir()):
            fd = os.open(path, os.O_RDONLY)
            self.paths[hash_descriptor(fd)] = path
            os.close(fd)

    def open(self, blob: Blob) -> int:
        """A read-only descriptor."""
        return os.open(self.paths[blob], os.O_RDONLY | os.O_CLOEXEC)

    def create(self, blob: Blob) -> Incoming:
        """Makes room for a blob."""
        return _Landing(self.target / blob.name, blob)

    def take(self, blob: Blob, content: memoryview) -> None:
        """Keeps content that is all in memory."""
        if hash_bytes(content) != blob:
            raise Damaged(f"{hash_bytes(content)} arrived in place of {blob}")
        write_new(os.path.join(self.target, blob.name), content)

    def some(self, count: int) -> list[Path]:
        """The first so many files."""
        return list(self.paths.values())[:count]

    def manifest(self, number: int) -> Manifest:
        """Of all of them, in one directory."""
        entries = [Entry(b"", Kind.DIRECTORY, 0o755)]
        files = ((path.name.encode(), blob) for blob, path in self.paths.items())
        entries += [Entry(name, Kind.FILE, 0o644, blob=blob) for name, blob in sorted(files)]
        return Manifest(snapshot_id(number), Lineage("bench"), "a", time.time_ns(), tuple(entries))


class _Landing:
    def __init__(self, path: Path, blob: Blob) -> None:
        self._blob = blob
        self._path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if blob.size:
            os.posix_fallocate(self.fd, 0, blob.size)

    def accept(self) -> None:
        found = hash_descriptor(self.fd)
        os.close(self.fd)
        if found != self._blob:
            raise Damaged(f"{found} arrived in place of {self._blob}")

    def discard(self) -> None:
        os.close(self.fd)
        self._path.unlink()


def snapshot_id(number: int) -> SnapshotId:
    """Of the volume that benchmarks back up."""
    return SnapshotId(Identity.parse(IDENTITY), number)


@asynccontextmanager
async def files_in_memory(directory: Path, count: int, size: int) -> AsyncIterator[Directory]:
    """So many files in memory that is warm, with room for as many others."""
    with tmpfs(directory, 5 * GIB) as plain:
        await in_thread(warm, plain, 3 * GIB)
        await in_thread(write_files, plain / "source", count, size)
        yield Directory(plain / "source", plain / "target")


@asynccontextmanager
async def tier_of_emulator() -> AsyncIterator[tuple[BucketTier, Emulator]]:
    """A tier with an emulator of its own: what one holds is memory, for which no other run shall pay."""
    async with running_emulator(BUCKET) as emulator:
        tier = BucketTier(f"gs://{BUCKET}/bench", emulator.endpoint)
        await tier.snapshots()  # loads what is needed for the first request
        yield tier, emulator
        await tier.aclose()


def _client(emulator: Emulator) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    return storage.Client("bench", credentials, client_options={"api_endpoint": emulator.endpoint})


def in_bucket(emulator: Emulator, work: Loop, paths: list[Path]) -> float:
    """Does something with the bucket as google-cloud-storage has it."""
    client = _client(emulator)
    try:
        bucket = client.bucket(BUCKET)
        bucket.blob("first").upload_from_string(b"")
        return work(bucket, paths)
    finally:
        client.close()
