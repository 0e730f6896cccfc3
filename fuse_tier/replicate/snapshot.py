"""Taking a snapshot: the state of a volume's whole tree at one instant, with no copy of what is sealed.

The tree is walked while the job goes on. The mount daemon counts changes; if the count is the same before
and after the walk, what was read stood there at one instant. If the job never pauses that long, the daemon
is asked to hold changes back for the time of one walk, which is bounded (holding.py). So a tree that can be read in
that time has a snapshot, however busy its job is. Hashing comes after: pinned content cannot change unseen any more
(ram/pins.py), whatever the job does meanwhile.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.hashing import hash_descriptor
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import remote_files, unmark
from fuse_tier.replicate.holding import Holding
from fuse_tier.replicate.walk import Found, TreeChanged, Walk, Writers, walk_tree
from fuse_tier.several import older_steps

log = structlog.get_logger(__name__)

T = TypeVar("T")

_OPTIMISTIC_ATTEMPTS = 3
_BATCH_FILES = 512
_BATCH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TreeVersion:
    """What the mount daemon says of its tree at one instant."""

    counter: int
    writers: Writers


class Gate(Protocol):
    """The one who can say whether the tree has changed, and can keep it from changing."""

    async def version(self) -> TreeVersion:
        """The state of now."""
        ...

    async def hold(self, seconds: float) -> TreeVersion:
        """Keeps the tree as it is until ``release``, or until the seconds have passed."""
        ...

    async def release(self) -> None:
        """Lets changes go on."""
        ...


class Quiescent:
    """The gate of a tree that is not mounted."""

    async def version(self) -> TreeVersion:
        """Nobody writes."""
        await trio.lowlevel.checkpoint()
        return TreeVersion(0, Writers())

    async def hold(self, seconds: float) -> TreeVersion:
        """Nothing to hold."""
        return await self.version()

    async def release(self) -> None:
        """Nothing was held."""
        await trio.lowlevel.checkpoint()


class Snapshotter:
    """Takes the snapshots of one volume, one at a time (the caller sees to that).

    ``evicting`` is held by who takes content out of files of the tree. A walk that saw a file's marker missing, and
    then the file empty, would believe that this is its content.
    """

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
        self._evicting = evicting
        self._holding = Holding()
        self.held_seconds = 0.0
        """For how long changes were kept back for the last snapshot, or the last attempt at one."""
        self.is_settled = True
        """Whether the last snapshot had every closed file: none was still written through a mapping."""

    async def take(self, identity: SnapshotId, lineage: Lineage, gate: Gate, previous: Manifest | None) -> Manifest:
        """The tree as it is now, as a manifest with the id ``identity``; all its blobs are in the RAM tier.

        Raises TreeChanged when it changed under every attempt, OSError (ENOSPC) when there is no room for a
        copy that is needed.
        """
        before = {entry.path: entry for entry in previous.entries} if previous else {}
        try:
            walk = await self._walk_consistently(gate, before)
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

    async def _walk_consistently(self, gate: Gate, previous: dict[bytes, Entry]) -> Walk:
        self.held_seconds = reading = 0.0
        for _ in range(_OPTIMISTIC_ATTEMPTS):
            before, began = await gate.version(), trio.current_time()
            walk = await self._try_walk(before.writers, previous)
            reading = max(reading, trio.current_time() - began)
            if walk is not None:
                after = await gate.version()
                if after.counter == before.counter:
                    return walk
                await self._take_back(walk, after.writers)
        return await self._walk_held(gate, previous, reading)

    async def _walk_held(self, gate: Gate, previous: dict[bytes, Entry], reading: float) -> Walk:
        holding, now = self._holding, trio.current_time()
        patience = holding.next(now, reading)
        if not patience:
            raise TreeChanged(
                f"the tree of {self._volume.root}, which takes {reading:.1f} s to read, changed meanwhile; its job "
                f"was held back in vain, and is not held back again for another {holding.not_for(now):.0f} s"
            )
        before, began = await gate.hold(patience), trio.current_time()
        try:
            walk = await self._try_walk(before.writers, previous)
            after = await gate.version()
        finally:
            with trio.move_on_after(Deadline.HOLD) as scope:
                scope.shield = True
                await gate.release()
            self.held_seconds = min(patience, trio.current_time() - began)
        if walk is not None and after.counter == before.counter:
            holding.was_of_use(self.held_seconds)
            return walk
        if walk is not None:
            await self._take_back(walk, after.writers)
        holding.was_in_vain(trio.current_time(), self.held_seconds)
        raise TreeChanged(
            f"the tree of {self._volume.root} could not be read within the {patience:.1f} s for which its job was "
            f"held back, and is not held back again for {holding.not_for(trio.current_time()):.0f} s"
        )

    async def _try_walk(self, writers: Writers, previous: dict[bytes, Entry]) -> Walk | None:
        try:
            async with self._evicting:
                return await self._in_thread(lambda: walk_tree(self._volume, self._pins, writers, previous))
        except TreeChanged:
            return None

    async def _take_back(self, walk: Walk, writers: Writers) -> None:
        """Removes pins that a writer may have overtaken."""
        late = [found.inode for found in walk.unhashed if found.inode in writers.inodes]
        if late:
            await self._in_thread(lambda: self._unpin(late))

    def _unpin(self, inodes: Sequence[int]) -> None:
        for inode in inodes:
            self._pins.unpin(inode)

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
        for _ in range(_OPTIMISTIC_ATTEMPTS):
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
