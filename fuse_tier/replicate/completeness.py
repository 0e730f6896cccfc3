"""Which snapshots of a job's volumes are a complete checkpoint.

A pure decision from what is listed in one place. The invariant: a step counts only when every replica of the job has
it, so that no rank is ever restored to another step than the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.manifest import Lineage


def representatives(saved: Iterable[Saved]) -> dict[tuple[str, int | None], Saved]:
    """Of one volume: the last snapshot of each run and step. Those before it were taken in the middle of the save."""
    last: dict[tuple[str, int | None], Saved] = {}
    for one in sorted(saved, key=lambda one: one.id.number):
        last[one.lineage.run, one.step] = one
    return last


def find_complete(job: Job, listed: Collection[Saved], expected: Collection[str] = ()) -> tuple[Checkpoint, ...]:
    """The complete checkpoints of a job's newest run, oldest first.

    ``listed`` is all that one place lists of the job. ``expected`` are replicas that are known to belong to it
    from elsewhere, such as those mounted now: they count as missing when they list nothing. Replicas of the same
    run and of the same world size and topology as the newest snapshot are one job; one that has grown or shrunk
    under the same run counts as another from then on. A job with several replicas whose trees name no step has no
    checkpoints: nothing tells which of their snapshots belong together.
    """
    if not listed:
        return ()
    newest = max(listed, key=lambda one: (one.created_ns, one.id))
    of_run = [one for one in listed if _shape(one.lineage) == _shape(newest.lineage)]
    by_replica: dict[str, list[Saved]] = {}
    for one in of_run:
        by_replica.setdefault(one.id.identity.replica, []).append(one)
    replicas = by_replica.keys() | set(expected)
    by_step: dict[int | None, dict[str, Saved]] = {}
    for replica, several in by_replica.items():
        for (_, step), last in representatives(several).items():
            by_step.setdefault(step, {})[replica] = last
    if len(replicas) > 1 or any(step is not None for step in by_step):
        by_step.pop(None, None)
    whole = [_checkpoint(job, step, parts) for step, parts in by_step.items() if parts.keys() == replicas]
    # By time: a job that went back to an earlier step goes on from there.
    return tuple(sorted(whole, key=lambda checkpoint: (checkpoint.created_ns, checkpoint.step or 0)))


def newest_complete(job: Job, listed: Collection[Saved], expected: Collection[str] = ()) -> Checkpoint | None:
    """The last of ``find_complete``: the one to be recorded, unless it has been."""
    complete = find_complete(job, listed, expected)
    return complete[-1] if complete else None


def _checkpoint(job: Job, step: int | None, parts: Mapping[str, Saved]) -> Checkpoint:
    latest = max(parts.values(), key=lambda one: (one.created_ns, one.id))
    return Checkpoint(
        job=job,
        lineage=latest.lineage,
        step=step,
        created_ns=latest.created_ns,
        snapshots={replica: one.id.number for replica, one in parts.items()},
    )


def _shape(lineage: Lineage) -> tuple[str, int, str]:
    return lineage.run, lineage.world_size, lineage.topology
