"""RAM on this node as a tier: blobs and manifests as files of the RAM layout.

Owns the order of things; the files are those of ``ram/content.py`` and ``ram/listing.py``. Live trees and pins
are their volumes' business. One process at a time has it: the worker.

``commit`` looks for the blobs and links the manifest while nothing is being collected, and ``collect`` removes
nothing while something is committed: so no listed manifest ever lacks a blob.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import structlog
import trio

from fuse_tier.blobs import Blob, Partial, Progress, ResumableIncoming, Sink, Source
from fuse_tier.errors import IncompleteSnapshot
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest, encode
from fuse_tier.ram import upkeep
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.listing import RamListing
from fuse_tier.ram.room import room_of
from fuse_tier.ram.spares import Spares
from fuse_tier.threads import run_interruptible
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.tiers.expected import Expected
from fuse_tier.tiers.local import copy_available, copy_blob
from fuse_tier.verified import VerifyReport

log = structlog.get_logger(__name__)
T = TypeVar("T")

_NAMED_AT_MOST = 3  # of what is missing, in a message
_SILENCE_SECONDS = 600.0  # between two pieces of a transfer: one may be large, and a link slow


class RamTier:
    """The RAM tier of one node; a source and a sink as well. The layout's directories are there (tmpfs.py)."""

    name = TierName.RAM

    def __init__(self, layout: Layout, node: str, expected: Expected | None = None) -> None:
        self.place = f"ram of {node}"
        self.layout = layout
        self._spares = Spares(layout)
        self._content = RamContent(layout, self.place)
        self._listing = RamListing(layout, self.place)
        self.spared: Callable[[], Collection[Blob]] = frozenset
        """Content that is collected by nobody although no listed manifest names it."""
        self._listed_or_collected = trio.Lock()
        self._copying = trio.CapacityLimiter(2)
        self._looking = trio.CapacityLimiter(4)  # apart, so that a look never waits for a copy
        self._expected = expected or Expected()
        self._unfinished: list[float] = []  # when each began, by the filesystem's clock

    def open(self, blob: Blob) -> int:
        """A read-only descriptor; see ``RamContent.open``. Raises NotFound, Damaged. Blocks."""
        return self._content.open(blob)

    def create(self, blob: Blob) -> ResumableIncoming:
        """Makes room for a blob. Raises TierFull, and nothing is left then. Blocks."""
        self._expected.comes(blob)
        return self._content.create(blob)

    def take(self, blob: Blob, content: memoryview) -> None:
        """Keeps content that is all in memory, if it is the blob. Raises Damaged, TierFull. Blocks."""
        self._expected.comes(blob)
        self._content.take(blob, content)

    def partial(self, blob: Blob) -> Partial | None:
        """What is kept of a blob whose transfer broke: another ``create`` goes on from there."""
        return self._content.partial(blob)

    def give_up_partials(self, but: Collection[Blob]) -> int:
        """Removes what is kept of other blobs than these; gives the bytes that came free. Blocks."""
        return self._content.partials.give_up(but)

    def remove(self, blob: Blob) -> None:
        """Removes a blob that was found to be damaged, so that it can be fetched again. Blocks."""
        self._content.remove(blob)

    def set_aside(self, blob: Blob) -> None:
        """Takes a damaged blob out of the way; see ``RamContent.set_aside``. Blocks."""
        self._content.set_aside(blob)

    def check(self, blob: Blob, progress: Progress) -> None:
        """Reads and hashes a blob; see ``upkeep.check``. Raises Damaged, NotFound, TierRefused. Blocks."""
        upkeep.check(self._content, blob, progress)

    def what_is_wrong(self, blobs: Collection[Blob], progress: Progress) -> dict[Blob, str]:
        """Which of these are not what their names say; see ``upkeep.what_is_wrong``. Blocks."""
        return upkeep.what_is_wrong(self._content, blobs, progress)

    async def named(self) -> frozenset[Blob]:
        """The content of every listed snapshot."""
        return await self._look(lambda: upkeep.named(self._listing))

    def clear_incoming(self) -> None:
        """Removes what a worker before this one left half done: for the start, before anything else. Blocks."""
        self._content.clear_incoming()

    def capacity_bytes(self) -> int:
        """How much the tmpfs may hold."""
        return room_of(self.layout.root).capacity

    def free_bytes(self) -> int:
        """How much room the tmpfs has left, spares included."""
        return room_of(self.layout.root).free + sum(self._spares.sizes())

    async def missing(self, blobs: Collection[Blob], *, anew: bool = False) -> set[Blob]:
        """Which of these are not here yet. Who asks brings them: ``collect`` spares them all while they come.

        ``anew`` where it is the beginning of a transfer, of which parts may be asked for again.
        """
        self._expected.expect(blobs, anew=anew)
        return await self._look(lambda: self._content.missing(blobs))

    async def absent(self, blobs: Collection[Blob]) -> set[Blob]:
        """Which of these are not here, for who only wants to know: nothing is spared for that."""
        return await self._look(lambda: self._content.missing(blobs))

    @contextmanager
    def unfinished(self) -> Iterator[None]:
        """While a snapshot of a tree here is being made, content that is new since its begin is not collected."""
        began = time.time()
        self._unfinished.append(began)
        try:
            yield
        finally:
            self._unfinished.remove(began)

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        """Copies blobs from a source of this machine. Raises what the source raises, Damaged, TierFull."""
        stop = Event()

        def copy() -> None:
            for blob in sorted(self._content.missing(blobs)):
                copy_blob(blob, source, self._content, progress, stop)

        await run_interruptible(copy, stop.set, self._copying)

    async def commit(self, manifest: Manifest) -> None:
        """Makes a snapshot visible. Raises IncompleteSnapshot, SnapshotConflict, TierFull."""

        def publish() -> bool:
            missing = self._content.missing(manifest.blobs)
            if missing:
                named = ", ".join(blob.name for blob in sorted(missing)[:_NAMED_AT_MOST])
                raise IncompleteSnapshot(
                    f"{manifest.id} lacks {len(missing)} of {len(manifest.blobs)} blobs in the {self.place}: {named}"
                )
            return self._listing.publish(manifest.id, text)

        text = await self._look(lambda: encode(manifest))
        async with self._listed_or_collected:
            await self._look(publish)
            self._expected.named(manifest.blobs)

    async def snapshots(self, identity: Identity | None = None) -> Sequence[SnapshotId]:
        """Everything listed, of one volume or of all, in order. Reads no manifest."""
        return await self._look(lambda: self._listing.snapshots(identity))

    async def manifest(self, snapshot: SnapshotId) -> Manifest:
        """Raises NotFound, MalformedManifest."""
        return await self._look(lambda: self._listing.read(snapshot))

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        """Copies as many as possible into a sink of this machine."""
        stop = Event()
        return await run_interruptible(
            lambda: copy_available(blobs, self._content, sink, progress, stop), stop.set, self._copying
        )

    async def drop(self, snapshot: SnapshotId) -> None:
        """Takes a snapshot from the list. One that is not there is no error."""
        await self._look(lambda: self._listing.remove(snapshot))

    async def collect(self, grace_seconds: float) -> int:
        """Removes blobs that no manifest names and that are older than the grace; gives the bytes freed.

        Content of snapshots that are being made is older than no grace, however long that takes; with a grace of
        nothing it is not protected. A manifest that cannot be read names nothing.
        """
        stop, started = Event(), time.monotonic()
        partials = self._content.partials
        await self._look(partials.expire if grace_seconds else partials.give_up)
        async with self._listed_or_collected:
            expected = self._expected.names(_SILENCE_SECONDS if grace_seconds else 0.0)
            spared = {blob.name for blob in self.spared()} | set(expected)
            if grace_seconds and self._unfinished:
                grace_seconds += max(0.0, time.time() - min(self._unfinished))
            collected = await run_interruptible(
                lambda: upkeep.collect(self.layout, self._listing, grace_seconds, stop, spared),
                stop.set,
                self._looking,
            )
        if collected.blobs:
            log.info(
                "ram.collected",
                blobs=collected.blobs,
                bytes=collected.bytes,
                seconds=round(time.monotonic() - started, 3),
                unreadable_manifests=collected.unreadable_manifests,
            )
        return collected.bytes

    async def release(self, blobs: Collection[Blob], *, shared: bool = False) -> int:
        """Removes those of these blobs that no manifest names, at once; gives the bytes freed.

        For content of snapshots that were just dropped, so no grace is needed: who counts on such a blob finds its
        commit refused, and stores it again. What a live file shares stays, because it frees nothing, unless
        ``shared``.
        """
        async with self._listed_or_collected:
            return await self._look(lambda: upkeep.release(self.layout, self._listing, blobs, shared=shared))

    async def give_up(self, volume: VolumeLayout, files: Mapping[int, Blob]) -> dict[int, int]:
        """Frees the content of marked files, by inode number; gives the bytes of those that were freed.

        Not of what a manifest names that was listed a moment ago: that file is as it was, and its marker goes.
        """
        async with self._listed_or_collected:
            return await self._look(lambda: upkeep.give_up_files(self.layout, self._listing, volume, files))

    async def verify(self, identity: Identity | None = None, progress: Progress = no_progress) -> VerifyReport:
        """Reads and hashes all content of the listed snapshots, of one volume or of all. Damage is reported only."""
        stop = Event()
        return await run_interruptible(
            lambda: upkeep.verify(self._listing, self._content, identity, progress, stop), stop.set, self._copying
        )

    async def _look(self, work: Callable[[], T]) -> T:
        """In a thread that is waited for: what it does is brief, and it never runs on beyond its caller."""
        return await trio.to_thread.run_sync(work, limiter=self._looking)
