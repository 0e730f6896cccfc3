"""Which snapshots are the parts of a job's complete checkpoint: a pure decision from what a node lists. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fuse_tier.checkpoints import Saved
from fuse_tier.completeness import last_with
from fuse_tier.errors import NotFound, TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage

if TYPE_CHECKING:
    from fuse_tier.standing import Standing
    from fuse_tier.wire import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class Parts:
    """A snapshot's number for each replica that has one, and which others' serve a replica in its place.

    These are of jobs that were declared to hold the same state in groups of replicas.
    """

    step: int | None
    numbers: Mapping[str, int]
    partners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def choose_parts(job: str, step: int | None, standings: Iterable[Standing], listed: Collection[pb.Snapshot]) -> Parts:
    """The parts of the newest complete checkpoint, or of that of a step.

    Raises NotFound, telling which there are, and TierUnavailable when parts of it are not listed just now.
    """
    whole = [one for one in standings if one.restorable]
    wanted = next((one for one in whole if step in (None, one.step)), None)
    if wanted is None:
        there = ", ".join(str(one.step) for one in whole if one.step is not None) or "none"
        what = (
            f"no complete checkpoint of {job}"
            if step is None
            else f"no complete checkpoint of {job} is of step {step}"
        )
        raise NotFound(f"{what}: those that can be had are of {there} (`fuse-tier status --job {job}`)")
    found: dict[str, list[Saved]] = {}
    shared: dict[str, tuple[int, int]] = {}  # the part of each replica of the state of so many groups
    for one in listed:
        snapshot = SnapshotId.parse(one.id)
        is_of_job = f"{snapshot.identity.namespace}/{snapshot.identity.workload}" == job
        if not is_of_job or one.run != wanted.run or not one.tiers:
            continue
        replica = snapshot.identity.replica
        own = one.step if one.HasField("step") else None
        if own != wanted.step or not one.set_aside:  # what was set aside for a newer step is as good
            found.setdefault(replica, []).append(
                Saved(snapshot, Lineage(one.run), own, one.created_ns, older=tuple(one.older_steps))
            )
        if one.groups and (replica not in shared or own == wanted.step):
            shared[replica] = (one.groups, one.part)
    chosen = {replica: last_with(wanted.step, several) for replica, several in found.items()}
    numbers = {replica: one.id.number for replica, one in chosen.items() if one is not None}
    parts = {shared[replica] for replica in numbers if replica in shared}
    is_shared = any(
        wanted.ranks == groups * sum(other == groups for other, _ in parts) for groups in {one for one, _ in parts}
    )
    if len(numbers) != wanted.ranks and not is_shared:
        named = "the newest state" if wanted.step is None else f"step {wanted.step}"
        raise TierUnavailable(
            f"{named} of {job} is of {wanted.ranks} ranks, but snapshots of {len(numbers)} are listed: who has the "
            "others does not answer, or the job has another shape since; see `fuse-tier ls`"
        )
    partners = {
        replica: tuple(sorted(one for one in numbers if one != replica and shared.get(one) == part))
        for replica, part in sorted(shared.items())
    }
    return Parts(wanted.step, numbers, partners)
