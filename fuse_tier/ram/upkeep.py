"""Going through a whole RAM tier: removing what nothing names, and reading everything to see that it is right.

Both block for long, in threads, and look at ``stop`` between two files. ``collect`` relies on nothing being
listed while it runs: the caller sees to that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Event

import structlog

from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import Damaged, InvalidRequest, MalformedManifest, NotFound, TierError
from fuse_tier.hashing import hash_descriptor
from fuse_tier.identity import Identity
from fuse_tier.manifest import quote
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.listing import RamListing
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import give_up, unmark
from fuse_tier.verified import VerifyReport

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, and what it met."""

    blobs: int = 0
    bytes: int = 0  # of memory that came free: content that is a live file, too, frees none
    unreadable_manifests: int = 0


def collect(
    layout: Layout, listing: RamListing, grace_seconds: float, stop: Event, spared: Collection[str] = ()
) -> Collected:
    """Removes blobs that no listed manifest names and that were linked or written longer ago than the grace.

    ``spared`` are names of blobs that a manifest is going to name.
    """
    needed, unreadable = _needed(listing)
    needed.update(spared)
    blobs = size = 0
    # The wall clock is the filesystem's: if it jumps, content of an unfinished snapshot may go too early; its
    # commit is then refused as incomplete, and the snapshot is stored again.
    newest = time.time() - grace_seconds
    for first in sorted(os.listdir(layout.blobs)):
        with os.scandir(os.path.join(layout.blobs, first)) as found:
            unneeded = [entry for entry in found if entry.name not in needed]
        for entry in unneeded:
            if stop.is_set():
                return Collected(blobs, size, unreadable)
            with suppress(FileNotFoundError):  # a detach puts a copy in place meanwhile
                status = entry.stat(follow_symlinks=False)
                if not _is_blob_name(entry.name) or status.st_ctime > newest:
                    continue
                os.unlink(entry.path)
                blobs += 1
                size += status.st_size if status.st_nlink == 1 else 0
    listing.remove_empty()
    return Collected(blobs, size, unreadable)


def release(layout: Layout, listing: RamListing, blobs: Collection[Blob], *, shared: bool) -> int:
    """Removes those of these blobs that no listed manifest names; gives the bytes freed. See ``RamTier.release``."""
    needed, _ = _needed(listing)
    size = 0
    for blob in blobs:
        if blob.name in needed:
            continue
        with suppress(FileNotFoundError):
            status = os.lstat(layout.blob(blob))
            if status.st_nlink == 1 or shared:
                os.unlink(layout.blob(blob))
                size += status.st_blocks * 512 if status.st_nlink == 1 else 0
    return size


def give_up_files(
    layout: Layout, listing: RamListing, volume: VolumeLayout, files: Mapping[int, Blob]
) -> dict[int, int]:
    """Frees the content of marked files that no listed manifest names. See ``RamTier.give_up``."""
    needed, _ = _needed(listing)
    pins = Pins(layout, volume)
    freed: dict[int, int] = {}
    for inode, blob in files.items():
        if blob.name in needed:
            unmark(volume, inode)
        else:
            freed[inode] = give_up(layout, volume, pins, inode, blob)
    return freed


def _needed(listing: RamListing) -> tuple[set[str], int]:
    """The names of all blobs that must stay, and how many manifests do not tell theirs."""
    needed: set[str] = set()
    unreadable: list[str] = []
    for snapshot in listing.snapshots():
        try:
            needed.update(blob.name for blob in listing.read(snapshot).blobs)
        except NotFound:
            continue  # dropped since
        except MalformedManifest as error:
            unreadable.append(str(snapshot))
            reason = str(error)
    if unreadable:
        log.error(
            "ram.manifests_unreadable", snapshots=unreadable, reason=reason, remedy="drop them: they name nothing"
        )
    return needed, len(unreadable)


def verify(
    listing: RamListing, content: RamContent, identity: Identity | None, progress: Progress, stop: Event
) -> VerifyReport:
    """Reads and hashes every blob of every listed manifest. Damage is reported, never raised."""
    good: set[Blob] = set()
    bad: dict[Blob, str] = {}
    damaged: list[str] = []
    snapshots = 0
    for snapshot in listing.snapshots(identity):
        try:
            manifest = listing.read(snapshot)
        except NotFound:
            continue  # dropped since
        except MalformedManifest as error:
            damaged.append(f"{snapshot}: {error}")
            continue
        snapshots += 1
        for entry in manifest.entries:
            if stop.is_set():
                return VerifyReport(snapshots, len(good), sum(blob.size for blob in good), tuple(damaged))
            if entry.blob is None:
                continue
            if entry.blob not in good and entry.blob not in bad:
                try:
                    check(content, entry.blob)
                    good.add(entry.blob)
                except TierError as error:
                    bad[entry.blob] = str(error)
                progress(entry.blob.size)
            if entry.blob in bad:
                damaged.append(f"{snapshot}: {quote(entry.path)}: {bad[entry.blob]}")
    return VerifyReport(snapshots, len(good) + len(bad), sum(blob.size for blob in good | bad.keys()), tuple(damaged))


def named(listing: RamListing) -> frozenset[Blob]:
    """The content of every listed snapshot whose manifest can be read."""
    found: set[Blob] = set()
    for snapshot in listing.snapshots():
        with suppress(NotFound, MalformedManifest):  # dropped since; who reads it next says so
            found |= listing.read(snapshot).blobs
    return frozenset(found)


def what_is_wrong(content: RamContent, blobs: Collection[Blob], progress: Progress) -> dict[Blob, str]:
    """Reads and hashes blobs; gives those that are not what their names say, and what they are.

    ``progress`` is told of each part that was read, and may end the reading by raising. Raises TierRefused when one
    cannot be read: nothing can be said of it then.
    """
    wrong: dict[Blob, str] = {}
    for blob in blobs:
        try:
            check(content, blob, progress)
        except (Damaged, NotFound) as error:
            wrong[blob] = str(error)
    return wrong


def check(content: RamContent, blob: Blob, progress: Progress | None = None) -> None:
    """Reads and hashes a blob. Raises Damaged if it is not what its name says, NotFound, TierRefused (not read)."""
    try:
        _read(content, blob, progress)
    except Damaged:
        # A job may have written to the file while it was read: a second look finds the copy of what it was.
        _read(content, blob, progress)


def _read(content: RamContent, blob: Blob, progress: Progress | None) -> None:
    fd = content.open(blob)
    try:
        found = hash_descriptor(fd, progress)
    finally:
        os.close(fd)
    if found != blob:
        raise Damaged(f"content is {found}, not {blob}")


def _is_blob_name(name: str) -> bool:
    try:
        Blob.parse(name)
    except InvalidRequest:
        return False
    return True
