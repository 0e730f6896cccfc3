"""When another node goes on with a volume: the tree that was left here must never count as the newest again.

A node that was counted out, by a dead machine's return or a network's, finds that its job runs elsewhere. From then
on no snapshot is taken of what stands here, and none is copied, until the volume is mounted here again; then the
files of the other node replace it. The record beside the tree keeps that in mind over restarts.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from fuse_tier import metrics
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.members import Member
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)


def was_left(identity: Identity, restored: Manifest | None, own: Member, others: Collection[Member]) -> bool:
    """Whether a node that had a volume is gone without having given it back.

    It may still run, cut off, and take snapshots of which nobody has heard. What was restored here has to count as
    newer than these from now on, not from the first change on.
    """
    alive = {own.node, *(member.node for member in others if member.alive)}
    return any(not member.alive and identity in member.mounted for member in others) or (
        restored is not None and restored.node not in alive
    )


async def supersede(volume: Volume, ram: RamTier, by: str) -> None:
    """Another node goes on with a volume.

    If it is still mounted here, what was taken since the last snapshot that was verified elsewhere goes from the
    list: it is not the volume's. The files stay where they are.
    """
    if volume.tenure.superseded or not volume.has_tree:
        return
    await volume.tenure.succeeded(by)
    given_up = await _taken_here(volume, ram) if volume.copies.verified and volume.mountpoint else []
    for snapshot in given_up:
        await ram.drop(snapshot)
    tell = log.error if volume.mountpoint else log.warning
    tell("volume.superseded", identity=str(volume.identity), by=by, given_up=[one.number for one in given_up])
    metrics.error("superseded")
    volume.news.announce()


async def find_successor(volume: Volume, ram: RamTier) -> None:
    """For a tree that a worker finds at its start: whether a newer snapshot is here, too, that another node took."""
    if not volume.has_tree or volume.tenure.superseded:
        return
    listed = await ram.snapshots(volume.identity)
    newest = volume.newest.id.number if volume.newest else 0
    if listed and listed[-1].number > newest:
        taken_by = await _node_of(listed[-1], ram)
        if taken_by != volume.options.node:
            await supersede(volume, ram, taken_by or "another node")


async def _taken_here(volume: Volume, ram: RamTier) -> list[SnapshotId]:
    """Those that nobody else has; not those that are held for another node."""
    listed = [one for one in await ram.snapshots(volume.identity) if one.number > volume.copies.verified]
    return [one for one in listed if await _node_of(one, ram) == volume.options.node]


async def _node_of(snapshot: SnapshotId, ram: RamTier) -> str:
    try:
        return (await ram.manifest(snapshot)).node
    except FuseTierError:
        return ""
