"""Snapshots for tests of tiers: made of a few files, kept, and read back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio

from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.memory import MemoryBlobs

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
