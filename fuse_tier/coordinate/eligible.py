"""Which snapshots of a job count for a restart: those of its life now, and none that is bad. Pure.

Of an earlier life is what a volume had beyond the step of a restart that it joined: it was given up then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.coordinate.jobs import KnownJob
from fuse_tier.epochs import epoch_of, number_before
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.restarts import Backup, Question


def shape(lineage: Lineage) -> tuple[str, int, str]:
    """What all parts of a checkpoint have in common."""
    return lineage.run, lineage.world_size, lineage.topology


def bad_parts(job: KnownJob) -> frozenset[tuple[SnapshotId, int | None]]:
    """What is not to be restored, of which step: it was marked, or found to be damaged."""
    every = {one for of_node in job.saved.values() for several in of_node.values() for one in several}
    return frozenset(
        (one.id, step)
        for one in every
        for step in one.steps or (None,)
        if one.id in job.damaged or _is_marked(job, one, step)
    )


def parts(
    job: KnownJob,
    lineage: Lineage,
    nodes: Iterable[str],
    but: Collection[tuple[str, Identity]] = (),
    *,
    be_it_bad: bool = False,
) -> dict[str, list[Saved]]:
    """What some nodes list of one run and shape that counts, by replica; ``but`` are volumes on nodes."""
    found: dict[str, dict[int, Saved]] = {}
    of_shape = shape(lineage)
    for node in nodes:
        for identity, several in job.saved.get(node, {}).items():
            if but and (node, identity) in but:
                continue
            for one in several:
                if shape(one.lineage) != of_shape:
                    continue
                counting = one if be_it_bad else _what_counts(job, one)
                if counting is not None:
                    found.setdefault(identity.replica, {})[one.id.number] = counting
    return {replica: list(numbered.values()) for replica, numbered in found.items()}


def _what_counts(job: KnownJob, one: Saved) -> Saved | None:
    """A snapshot with those of its steps that count; None when there is none."""
    if one.id in job.damaged:
        return None
    if (living := without_given_up(job, one)) is None:
        return None
    return _with(living, (step for step in living.steps if not _is_marked(job, one, step)))


def without_given_up(job: KnownJob, one: Saved) -> Saved | None:
    """A snapshot with those of its steps that the job has not gone back from; None when there is none."""
    last = job.last.get((one.lineage.run, one.id.identity))
    return one if last is None else _with(one, (step for step in one.steps if not last.gives_up(step, one.id.epoch)))


def _with(one: Saved, steps: Iterable[int]) -> Saved | None:
    if one.step is None:
        return one
    left = tuple(steps)
    if left == one.steps:
        return one
    return replace(one, step=left[-1], older=left[:-1]) if left else None


def _is_marked(job: KnownJob, one: Saved, step: int | None) -> bool:
    return any(mark.is_on(one.lineage.run, step, one.id.number) for mark in job.marks)


def last_restarts(known: KnownJob, run: str) -> dict[str, int]:
    """The last restart of a run that each volume is known to have joined, be it mounted or not."""
    return {identity.replica: last.restart for (of, identity), last in known.last.items() if of == run}


def usable(question: Question, job: KnownJob) -> tuple[Backup, ...]:
    """Of the backups that an asker has seen those that count, and the one that is forced."""
    run, of_job = question.lineage.run, Job.of(question.identity)

    def counts(one: Backup) -> bool:
        identity = of_job.identity(one.partner) if one.partner else question.identity
        # Of one that only partners have it is not said whose: all its snapshots have at least this epoch.
        number = one.number or number_before(one.epoch)
        if one.number and SnapshotId(identity, one.number) in job.damaged:
            return False
        if any(mark.is_on(run, one.step, number) for mark in job.marks):
            return False
        last = job.last.get((run, identity))
        return one.step == question.forced or last is None or not last.gives_up(one.step, epoch_of(number))

    return tuple(filter(counts, question.backups))


def other_shapes(job: KnownJob, lineage: Lineage) -> tuple[Lineage, ...]:
    """In which snapshots of the run were taken, too."""
    return tuple(
        {
            one.lineage
            for of_node in job.saved.values()
            for several in of_node.values()
            for one in several
            if one.lineage.run == lineage.run and shape(one.lineage) != shape(lineage)
        }
    )
