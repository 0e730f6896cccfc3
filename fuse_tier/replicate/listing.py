"""What becomes of a snapshot that was taken: whether it is worth a number, and whether the RAM tier lists it."""

from __future__ import annotations

import os

import structlog
import trio

from fuse_tier.errors import IncompleteSnapshot
from fuse_tier.manifest import Manifest
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.remote import remote_files
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)


def is_worth_a_number(layout: VolumeLayout, previous: Manifest | None, manifest: Manifest) -> bool:
    """Whether a snapshot says anything that the previous one does not. Looks at the tree, so call it in a thread."""
    if previous is None:
        return len(manifest.entries) > 1
    if previous.lineage != manifest.lineage:
        return True
    lost = _lost_paths(layout, previous, manifest)
    return tuple(entry for entry in previous.entries if entry.path not in lost) != manifest.entries


def _lost_paths(layout: VolumeLayout, previous: Manifest, manifest: Manifest) -> set[bytes]:
    """Files that stand in the tree, but whose content no place could give: no snapshot can have them."""
    if not os.listdir(layout.remote):
        return set()
    tree = os.fsencode(layout.tree)
    absent = {entry.path for entry in previous.entries} - {entry.path for entry in manifest.entries}
    return {path for path in absent if os.path.lexists(os.path.join(tree, path))}


async def list_in_ram(ram: RamTier, layout: VolumeLayout, manifest: Manifest) -> bool:
    """Commits to the RAM tier, if it has all content.

    A snapshot some of whose content was given up, because the bucket has it, is not listed here: what a tier
    lists it can restore by itself. It is the newest all the same, and goes to the tiers that have the rest.
    A restart finds the tree, the marks that say what it lacks, and takes the snapshot again.
    """
    try:
        await ram.commit(manifest)
    except IncompleteSnapshot:
        given_up = set((await trio.to_thread.run_sync(remote_files, layout)).values())
        if not await ram.missing(manifest.blobs) <= given_up:
            raise
        log.info("snapshot.not_listed", snapshot=str(manifest.id), reason="content of it is elsewhere only")
        return False
    return True
