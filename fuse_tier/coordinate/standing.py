"""Which checkpoints of a job are complete in the RAM of nodes: a pure decision from what nodes list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.completeness import has_every_part, producible_steps
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.standing import PEER, RAM, Standing


@dataclass(frozen=True, slots=True)
class Held:
    """A part of a checkpoint, as one node lists it."""

    saved: Saved
    is_alive: bool  # the node
    is_copy: bool  # the node does not have the volume mounted


def standings(
    job: Job, listed: Iterable[Held], bad: Collection[tuple[SnapshotId, int | None]] = ()
) -> tuple[Standing, ...]:
    """The complete checkpoints of all runs and shapes of a job; ``bad`` are parts, and the steps of these, that are
    not to be restored.
    """
    by_shape: dict[tuple[str, int, str], dict[str, dict[int, Saved]]] = {}
    here: set[SnapshotId] = set()
    copied: set[SnapshotId] = set()
    for one in listed:
        saved = one.saved
        replicas = by_shape.setdefault(_shape(saved.lineage), {})
        replicas.setdefault(saved.id.identity.replica, {})[saved.id.number] = saved
        if one.is_alive:
            here.add(saved.id)
        if one.is_alive and one.is_copy:
            copied.add(saved.id)
    found: list[Standing] = []
    for (run, ranks, _), replicas in by_shape.items():
        saved_by_replica = {name: several.values() for name, several in replicas.items()}
        for step, by_replica in producible_steps(saved_by_replica, ranks).items():
            parts = by_replica.values()
            tiers = tuple(
                tier
                for tier, holds in ((RAM, here), (PEER, copied))
                if _are_enough([part for part in parts if part.id in holds], ranks)
            )
            created_ns = max(part.created_ns for part in parts)
            size = sum(part.size for part in parts)
            is_bad = not _are_enough([part for part in parts if (part.id, step) not in bad], ranks)
            found.append(Standing(job, run, ranks, step, created_ns, size, tiers, is_bad))
    return tuple(found)


def _are_enough(parts: Collection[Saved], ranks: int) -> bool:
    """Whether all ranks can go on from these."""
    return len(parts) == ranks or has_every_part(parts)


def _shape(lineage: Lineage) -> tuple[str, int, str]:
    return lineage.run, lineage.world_size, lineage.topology
