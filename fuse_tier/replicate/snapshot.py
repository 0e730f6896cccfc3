"""Taking a snapshot: the state of a volume's whole tree at one instant, with no copy of what is sealed.

The tree is read first (instant.py). Hashing comes after: pinned content cannot change unseen any more (ram/pins.py),
whatever the job does meanwhile.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError
from fuse_tier.hashing import hash_descriptor
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import remote_files, unmark
from fuse_tier.replicate.instant import Gate, TreeReader
from fuse_tier.replicate.walk import Found, TreeChanged, Walk
from fuse_tier.several import older_steps

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ATTEMPTS = 3
_BATCH_FILES = 512
_BATCH_BYTES = 256 << 20


class Snapshotter:
    """Takes the snapshots of one volume, one at a time (the caller sees to that)."""

    def __init__(
        self,
        layout: Layout,
        volume: VolumeLayout,
        node: str,
        limiter: trio.CapacityLimiter,
        evicting: trio.Lock,
    ) -> None:
        self._layout = layout
        self._volume = volume
        self._pins = Pins(layout, volume)
        self._node = node
        self._limiter = limiter  # threads that hash: what trainers feel
        self._reader = TreeReader(volume, self._pins, evicting)
        self.is_settled = True
        """Whether the last snapshot had every closed file: none was still written through a mapping."""

    @property
    def held_seconds(self) -> float:
        """For how long changes were kept back for the last snapshot, or the last attempt at one."""
        return self._reader.held_seconds

    async def take(
        self,
        identity: SnapshotId,
        lineage: Lineage,
        gate: Gate,
        previous: Manifest | None,
        *,
        is_awaited: bool = False,
    ) -> Manifest:
        """The tree as it is now, as a manifest with the id ``identity``; all its blobs are in the RAM tier.

        ``is_awaited``: somebody waits for it, and for that the job may be held sooner.
        Raises TreeChanged when it changed under every attempt, OSError (ENOSPC) when there is no room for a
        copy that is needed.
        """
        before = {entry.path: entry for entry in previous.entries} if previous else {}
        try:
            walk = await self._reader.read(gate, before, is_awaited=is_awaited)
        finally:
            metrics.goodput_lost(str(identity.identity), "held", self.held_seconds)
        self.is_settled = walk.is_settled
        metrics.sealed(sum(entry.blob is not None for entry in walk.entries), "unchanged")
        if walk.unhashed:
            blobs = await self._seal(identity, walk.unhashed)
        else:
            blobs = []
        await self._in_thread(lambda: self._forget_vanished(walk.inodes))
        manifest = Manifest(identity, lineage, self._node, time.time_ns(), _fill(walk, blobs, before))
        older = await self._in_thread(lambda: older_steps(manifest, previous))
        return replace(manifest, older_steps=older) if older else manifest

    async def _seal(self, snapshot: SnapshotId, unhashed: Sequence[Found]) -> list[Blob | None]:
        started = trio.current_time()
        blobs = await self._hash(unhashed)
        metrics.sealed(len(blobs))
        log.info(
            "files.sealed",
            identity=str(snapshot.identity),
            snapshot=snapshot.number,
            files=len(blobs),
            bytes=sum(found.size for found in unhashed),
            seconds=round(trio.current_time() - started, 3),
        )
        for found, blob in zip(unhashed, blobs, strict=True):
            log.debug("file.sealed", snapshot=str(snapshot), path=found.path, blob=blob.name if blob else None)
        return blobs

    async def _hash(self, unhashed: Sequence[Found]) -> list[Blob | None]:
        """The blobs of files, in their order. Batches of files go to threads; small ones share a thread's turn."""
        results: list[list[Blob | None]] = []
        failures: list[FuseTierError | OSError] = []  # so that the first is raised as it is, in no group
        async with trio.open_nursery() as nursery:

            async def hash_batch(index: int, batch: Sequence[Found]) -> None:
                try:
                    results[index] = await self._in_thread(lambda: [self._hash_one(found) for found in batch])
                except (FuseTierError, OSError) as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            for index, batch in enumerate(_batches(unhashed)):
                results.append([])
                nursery.start_soon(hash_batch, index, batch)
        if failures:
            raise failures[0]
        return [blob for batch in results for blob in batch]

    def _hash_one(self, found: Found) -> Blob | None:
        return self._copy_and_hash(found) if found.copied else self._hash_pin(found)

    def _hash_pin(self, found: Found) -> Blob:
        """Hashes what the walk pinned. A detach meanwhile replaces the pin by a copy of the same content."""
        for _ in range(_ATTEMPTS):
            known = self._pins.known_blob(found.inode)
            if known is not None:  # two names of one tree, or an attempt before this one
                return known
            try:
                fd = os.open(self._pins.path(found.inode), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                break
            try:
                blob = hash_descriptor(fd)
                if self._pins.adopt(found.inode, os.fstat(fd), blob):
                    return blob
            finally:
                os.close(fd)
        raise TreeChanged(f"{found.path!r} changed while it was hashed")

    def _copy_and_hash(self, found: Found) -> Blob | None:
        """Keeps a copy of a file that has a writer, which has fsynced; None if it has been written since.

        What is written through a mapping changes no time. So the file is read twice: when both times the content is
        the same, it stood there between them.
        """
        copy = os.path.join(self._layout.incoming, secrets.token_hex(8))
        try:
            source = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            with open(copy, "xb+", opener=_private) as target:
                while os.sendfile(target.fileno(), source, None, _BATCH_BYTES):
                    continue
                blob = hash_descriptor(target.fileno())
            again = hash_descriptor(source)
            after = os.fstat(source)
            if again != blob or (after.st_ino, after.st_ctime_ns) != (found.inode, found.ctime_ns):
                return None
            with suppress(FileExistsError):
                os.link(copy, self._layout.blob(blob))
            return blob
        finally:
            os.close(source)
            with suppress(FileNotFoundError):
                os.unlink(copy)

    def _forget_vanished(self, inodes: frozenset[int]) -> None:
        """Pins of files that are gone: their blobs stay for as long as manifests name them."""
        for name in os.listdir(self._volume.pins):
            if name.isdigit() and int(name) not in inodes:
                self._pins.forget(int(name))
        for inode in remote_files(self._volume):
            if inode not in inodes:
                unmark(self._volume, inode)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _fill(walk: Walk, blobs: Sequence[Blob | None], previous: Mapping[bytes, Entry]) -> tuple[Entry, ...]:
    """The walk's entries with their blobs; a file without one stands as it was last sealed, if it was."""
    entries: list[Entry | None] = list(walk.entries)
    lost: set[bytes] = set()
    for found, blob in zip(walk.unhashed, blobs, strict=True):
        entry = walk.entries[found.index]
        before = previous.get(entry.path)
        blob = blob or (before.blob if before else None)
        entries[found.index] = replace(entry, blob=blob) if blob else None
        if blob is None:
            lost.add(entry.path)
    return tuple(
        entry for entry in entries if entry is not None and not (entry.kind is Kind.HARDLINK and entry.target in lost)
    )


def _batches(unhashed: Sequence[Found]) -> list[list[Found]]:
    batches: list[list[Found]] = []
    total = 0
    for found in unhashed:
        if not batches or len(batches[-1]) >= _BATCH_FILES or total + found.size > _BATCH_BYTES:
            batches.append([])
            total = 0
        batches[-1].append(found)
        total += found.size
    return batches
