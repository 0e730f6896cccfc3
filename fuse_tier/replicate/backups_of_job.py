"""What a bucket has for a restart of a whole job: its complete checkpoints, from the side of one volume. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fuse_tier.checkpoints import Checkpoint, Saved
from fuse_tier.completeness import has_every_part, partner_of
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
    identity: Identity, lineage: Lineage, checkpoints: Iterable[Checkpoint], listed: Mapping[SnapshotId, Saved | None]
) -> tuple[Backup, ...]:
    """Those of a run and shape that are all there and name a step.

    ``listed`` is what the bucket lists of the job, with what can be read of it. Of one that has nothing of the
    volume, but every part of the state that its replicas share, a partner's is named where the lineage says its part.
    """
    shape = (lineage.run, lineage.world_size, lineage.topology)
    found: dict[tuple[int, str, int], Backup] = {}
    for one in sorted(checkpoints, key=lambda one: one.created_ns):
        has = (one.lineage.run, one.lineage.world_size, one.lineage.topology)
        if one.step is None or has != shape or not one.ids <= listed.keys():
            continue
        parts = {part.id.identity.replica: part for snapshot in one.ids if (part := listed[snapshot]) is not None}
        number, partner = one.number_of(identity), ""
        if len(one.snapshots) != lineage.world_size and not has_every_part(parts.values()):
            continue
        if number is None:
            partner = partner_of(lineage, parts) or ""
            number = parts[partner].id.number if partner else 0
        epoch = min(map(epoch_of, one.snapshots.values()))
        found[one.step, partner, number] = Backup(one.step, number, epoch, one.names[0], partner)
    return tuple(found.values())
