"""The tier contract in plain dictionaries: for tests, simulations, and as the shortest reading of the contract.

Owns nothing outside its process and keeps nothing after it. Not for production: content is held as bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from threading import Event

import trio

from fuse_tier.blobs import Blob, Incoming, Progress, Sink, Source
from fuse_tier.errors import Damaged, IncompleteSnapshot, MalformedManifest, NotFound, SnapshotConflict, TierFull
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest, decode, encode, quote
from fuse_tier.threads import run_interruptible
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.tiers.local import copy_available, copy_blob
from fuse_tier.verified import VerifyReport


class MemoryBlobs:
    """A source and sink in memory. ``capacity`` is in bytes of content; None: as much as there is."""

    def __init__(self, capacity: int | None = None) -> None:
        self.contents: dict[Blob, bytes] = {}
        self.capacity = capacity

    def open(self, blob: Blob) -> int:
        """A read-only descriptor of a copy. Raises NotFound, and Damaged when the size is another."""
        content = self.contents.get(blob)
        if content is None:
            raise NotFound(f"{blob} is not in memory")
        if len(content) != blob.size:
            raise Damaged(f"{blob} has {len(content)} bytes in memory")
        with os.fdopen(os.memfd_create(blob.name), "wb") as file:
            file.write(content)
            file.flush()
            return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)

    def create(self, blob: Blob) -> Incoming:
        """Makes room for a blob. Raises TierFull."""
        if self.capacity is not None and self.size + blob.size > self.capacity:
            raise TierFull(f"{blob} does not fit into what is left of {self.capacity} bytes of memory")
        return _Landing(self.contents, blob)

    @property
    def size(self) -> int:
        """Bytes of all content."""
        return sum(len(content) for content in tuple(self.contents.values()))


class _Landing:
    def __init__(self, contents: dict[Blob, bytes], blob: Blob) -> None:
        self._contents = contents
        self._blob = blob
        self.fd = os.memfd_create(blob.name)

    def accept(self) -> None:
        try:
            found = hash_descriptor(self.fd)
            if found != self._blob:
                raise Damaged(f"{found} arrived in place of {self._blob}")
            self._contents[self._blob] = os.pread(self.fd, found.size, 0)
        finally:
            self.discard()

    def discard(self) -> None:
        os.close(self.fd)


class MemoryTier:
    """A tier in memory, which is a source and a sink as well.

    ``clock`` gives seconds for the age of content: pass ``trio.current_time`` where time is virtual.
    """

    def __init__(
        self,
        name: TierName = TierName.RAM,
        place: str = "memory",
        capacity: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.place = place
        self.blobs = MemoryBlobs(capacity)
        self.texts: dict[SnapshotId, bytes] = {}
        self._clock = clock
        self._first_seen: dict[Blob, float] = {}
        self._limiter = trio.CapacityLimiter(2)

    def open(self, blob: Blob) -> int:
        """A read-only descriptor of a copy. Raises NotFound, Damaged."""
        return self.blobs.open(blob)

    def create(self, blob: Blob) -> Incoming:
        """Makes room for a blob. Raises TierFull."""
        return self.blobs.create(blob)

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """Which of these are not here yet."""
        await trio.lowlevel.checkpoint()
        return {blob for blob in blobs if not self._has(blob)}

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        """Puts blobs here, verified. Raises what the source raises, Damaged, TierFull."""
        wanted = sorted(await self.missing(blobs))
        stop = Event()

        def copy() -> None:
            for blob in wanted:
                copy_blob(blob, source, self.blobs, progress, stop)

        await run_interruptible(copy, stop.set, self._limiter)
        self._first_seen |= dict.fromkeys(wanted, self._clock())

    async def commit(self, manifest: Manifest) -> None:
        """Makes a snapshot visible. Raises IncompleteSnapshot, SnapshotConflict."""
        await trio.lowlevel.checkpoint()
        # No checkpoint from here on: nobody sees, or collects, anything in between.
        missing = [blob for blob in manifest.blobs if not self._has(blob)]
        if missing:
            raise IncompleteSnapshot(f"{manifest.id} lacks {len(missing)} blobs on {self.place}: {min(missing)} …")
        text = encode(manifest)
        if self.texts.setdefault(manifest.id, text) != text:
            highest = max(found.number for found in self.texts if found.identity == manifest.id.identity)
            raise SnapshotConflict(f"{self.place} has another snapshot {manifest.id} already", highest)

    async def snapshots(self, identity: Identity | None = None) -> Sequence[SnapshotId]:
        """Everything listed, of one volume or of all, in order."""
        await trio.lowlevel.checkpoint()
        return sorted(found for found in self.texts if identity is None or found.identity == identity)

    async def manifest(self, snapshot: SnapshotId) -> Manifest:
        """Raises NotFound, MalformedManifest."""
        await trio.lowlevel.checkpoint()
        text = self.texts.get(snapshot)
        if text is None:
            raise NotFound(f"{snapshot} is not on {self.place}")
        manifest = decode(text)
        if manifest.id != snapshot:
            raise MalformedManifest(f"{self.place} has the manifest of {manifest.id} as {snapshot}")
        return manifest

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        """Brings as many as possible into the sink, verified."""
        stop = Event()
        return await run_interruptible(
            lambda: copy_available(blobs, self.blobs, sink, progress, stop), stop.set, self._limiter
        )

    async def drop(self, snapshot: SnapshotId) -> None:
        """Takes a snapshot from the list. One that is not there is no error."""
        await trio.lowlevel.checkpoint()
        self.texts.pop(snapshot, None)

    async def collect(self, grace_seconds: float) -> int:
        """Removes blobs that no manifest names and that were first seen longer ago than the grace."""
        await trio.lowlevel.checkpoint()
        needed: set[Blob] = set()
        for text in self.texts.values():
            try:
                needed |= decode(text).blobs
            except MalformedManifest:
                continue  # names nothing; whoever asks for it is told
        now = self._clock()
        unneeded = [
            blob
            for blob in tuple(self.blobs.contents)  # a thread may be adding some
            if blob not in needed and now - self._first_seen.setdefault(blob, now) >= grace_seconds
        ]
        for blob in unneeded:
            del self._first_seen[blob]
        return sum(len(self.blobs.contents.pop(blob)) for blob in unneeded)

    async def verify(self, identity: Identity | None = None) -> VerifyReport:
        """Hashes everything listed, of one volume or of all. Damage is reported, never raised."""
        checked: dict[Blob, bool] = {}
        damaged: list[str] = []
        snapshots = 0
        for snapshot in await self.snapshots(identity):
            try:
                manifest = await self.manifest(snapshot)
            except (NotFound, MalformedManifest) as error:
                damaged.append(f"{snapshot}: {error}")
                continue
            snapshots += 1
            for entry in manifest.entries:
                if entry.blob is None:
                    continue
                if entry.blob not in checked:
                    checked[entry.blob] = hash_bytes(self.blobs.contents.get(entry.blob, b"")) == entry.blob
                if not checked[entry.blob]:
                    damaged.append(f"{snapshot}: {quote(entry.path)}: the content is missing or damaged")
        return VerifyReport(snapshots, len(checked), sum(blob.size for blob in checked), tuple(damaged))

    def _has(self, blob: Blob) -> bool:
        content = self.blobs.contents.get(blob)
        return content is not None and len(content) == blob.size
