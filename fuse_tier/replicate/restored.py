"""What a restore did, for whoever asked for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fuse_tier.blobs import Blob
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.choice import Chosen
from fuse_tier.tiers.base import TierName


@dataclass(slots=True)
class Restored:
    """What a restore did."""

    snapshot: SnapshotId
    files: int
    size: int
    seconds: float
    sources: dict[str, int] = field(default_factory=dict)  # place -> bytes that it gave
    unreadable: tuple[str, ...] = ()  # files whose content no place could give
    passed_over: tuple[int, ...] = ()  # newer snapshots that are damaged or gone
    coming: int = 0  # bytes that come after the mount, first those of what is opened
    is_from_bucket: bool = False  # because no node had it


def report(
    manifest: Manifest,
    chosen: Chosen,
    seconds: float,
    sources: dict[str, int],
    unreadable: tuple[str, ...],
    coming: Collection[Blob] = (),
) -> Restored:
    """Of a chosen snapshot, of which ``manifest`` was restored."""
    files = sum(1 for entry in manifest.entries if entry.blob is not None)
    later = sum(blob.size for blob in coming)
    bucket_only = all(place.name is TierName.BUCKET for place in chosen.places)
    return Restored(
        manifest.id, files, manifest.size, seconds, sources, unreadable, chosen.passed_over, later, bucket_only
    )
