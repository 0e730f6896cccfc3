"""What a bucket has for a restart of a whole job: its complete checkpoints, from the side of one volume. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fuse_tier.checkpoints import Checkpoint
from fuse_tier.epochs import epoch_of
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.restarts import Backup


@dataclass(frozen=True, slots=True)
class BackupsOfJob:
    """Complete checkpoints, oldest first, and the step that ``restore.version`` names."""

    backups: tuple[Backup, ...] = ()
    forced: int | None = None


def backups_of(
    identity: Identity, lineage: Lineage, checkpoints: Iterable[Checkpoint], listed: Collection[SnapshotId]
) -> tuple[Backup, ...]:
    """Those of a run and shape that are all there and name a step."""
    shape = (lineage.run, lineage.world_size, lineage.topology)
    found: dict[tuple[int, int], Backup] = {}
    for one in sorted(checkpoints, key=lambda one: one.created_ns):
        number = one.number_of(identity)
        has = (one.lineage.run, one.lineage.world_size, one.lineage.topology)
        if one.step is None or number is None or has != shape or len(one.snapshots) != lineage.world_size:
            continue
        if not one.ids <= set(listed):
            continue
        found[one.step, number] = Backup(one.step, number, min(map(epoch_of, one.snapshots.values())), one.names[0])
    return tuple(found.values())
