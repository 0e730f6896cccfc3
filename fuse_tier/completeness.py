"""Which snapshots of a job's volumes are a complete checkpoint.

A pure decision from what is listed in one place. The invariant: a step counts only when every replica of the job has
it, so that no rank is ever restored to another step than the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.manifest import Lineage


def representatives(saved: Iterable[Saved]) -> dict[int | None, Saved]:
    """Of one run of a volume: the last snapshot of each step, else the first of a newer one that has it as well.

    Those before the last were taken in the middle of the save. A step higher than that of a later snapshot was given
    up: the job has gone back, and when it comes to that step again it is another one.
    """
    last: dict[int | None, Saved] = {}
    beside: dict[int | None, Saved] = {}
    for one in sorted(saved, key=lambda one: one.id.number):
        if one.step is not None:
            for known in (last, beside):
                for step in [step for step in known if step is not None and step > one.step]:
                    del known[step]
        last[one.step] = one
        for step in one.older:
            beside.setdefault(step, one)
    return beside | last


def last_with(step: int | None, saved: Collection[Saved]) -> Saved | None:
    """Of one run of a volume: the snapshot to take a step from where nobody tells which lives were given up.

    It is of the last ownership that has the step, and of those ``representatives`` of it: a life that went back
    from the step was owned before.
    """
    having = [one for one in saved if one.step == step or step in one.older]
    last = max((one.id.epoch for one in having), default=0)
    return representatives(one for one in having if one.id.epoch == last).get(step)


def whole_steps(saved: Mapping[str, Iterable[Saved]], size: int) -> dict[int, dict[str, Saved]]:
    """The steps that all ``size`` ranks of a job have, with the snapshot of each replica, by step.

    ``saved`` is what is known of each replica, of one run and one shape of the job.
    """
    return {step: whole for step, whole in _by_step(saved).items() if len(whole) == size}


def producible_steps(saved: Mapping[str, Iterable[Saved]], size: int) -> dict[int, dict[str, Saved]]:
    """The steps from which all ``size`` ranks of a job can go on, as ``whole_steps``.

    Beside those that are whole these are the ones of which replicas that were declared to hold the same state
    have every part between them: what one of them has serves its partners. No replica need have lost anything.
    """
    return {
        step: parts for step, parts in _by_step(saved).items() if len(parts) == size or has_every_part(parts.values())
    }


def has_every_part(parts: Collection[Saved]) -> bool:
    """Whether snapshots of one step are all parts of a state that groups of replicas were declared to share."""
    held: dict[tuple[int, int], set[int]] = {}
    for one in parts:
        if one.lineage.groups:
            held.setdefault((one.lineage.world_size, one.lineage.groups), set()).add(one.lineage.part)
    return any(len(found) == size // groups for (size, groups), found in held.items())


def partner_of(lineage: Lineage, parts: Mapping[str, Saved]) -> str | None:
    """The replica whose part of a step serves a rank of this lineage that has none; None: none does.

    Of several the one that saved last, so that all who ask take the same.
    """
    found = [
        (one.created_ns, replica)
        for replica, one in parts.items()
        if lineage.groups and (one.lineage.groups, one.lineage.part) == (lineage.groups, lineage.part)
    ]
    return max(found)[1] if found else None


def _by_step(saved: Mapping[str, Iterable[Saved]]) -> dict[int, dict[str, Saved]]:
    parts: dict[int, dict[str, Saved]] = {}
    for replica, several in saved.items():
        for step, last in representatives(several).items():
            if step is not None:
                parts.setdefault(step, {})[replica] = last
    return dict(sorted(parts.items()))


def find_complete(job: Job, listed: Collection[Saved], expected: Collection[str] = ()) -> tuple[Checkpoint, ...]:
    """The complete checkpoints of a job's newest run, oldest first.

    ``listed`` is all that one place lists of the job. ``expected`` are replicas that are known to belong to it
    from elsewhere, such as those mounted now: they count as missing when they list nothing. Replicas of the same
    run and of the same world size and topology as the newest snapshot are one job; one that has grown or shrunk
    under the same run counts as another from then on. A job with several replicas whose trees name no step has no
    checkpoints: nothing tells which of their snapshots belong together. Replicas that were declared to hold the same
    state stand in for each other (``has_every_part``).
    """
    if not listed:
        return ()
    # By the owner first: one that was counted out may go on saving, and later than the next.
    newest = max(listed, key=lambda one: (one.id.epoch, one.created_ns, one.id))
    of_run = [one for one in listed if _shape(one.lineage) == _shape(newest.lineage)]
    by_replica: dict[str, list[Saved]] = {}
    for one in of_run:
        by_replica.setdefault(one.id.identity.replica, []).append(one)
    replicas = by_replica.keys() | set(expected)
    by_step: dict[int | None, dict[str, Saved]] = {}
    for replica, several in by_replica.items():
        for step, last in representatives(several).items():
            by_step.setdefault(step, {})[replica] = last
    if len(replicas) > 1 or any(step is not None for step in by_step):
        by_step.pop(None, None)
    whole = [
        _checkpoint(job, step, parts)
        for step, parts in by_step.items()
        if parts.keys() == replicas or has_every_part(parts.values())
    ]
    # By time: a job that went back to an earlier step goes on from there.
    return tuple(sorted(whole, key=lambda checkpoint: (checkpoint.created_ns, checkpoint.step or 0)))


def newest_complete(
    job: Job, listed: Collection[Saved], expected: Collection[str] = (), recorded: Collection[Checkpoint] = ()
) -> Checkpoint | None:
    """The newest complete checkpoint that is not in ``recorded``, which are those that are known; None if it is.

    No volume's part is older than that of the newest recorded one: when a job has gone back to an earlier step, a
    rank that has not yet done so is not taken for one that has. And its date is later, whatever the clocks say.
    """
    complete = find_complete(job, listed, expected)
    if not complete:
        return None
    of_run = [record for record in recorded if _shape(record.lineage) == _shape(complete[-1].lineage)]
    newest = max(of_run, key=lambda record: record.created_ns, default=None)
    if newest is None:
        return complete[-1]
    before = newest.snapshots
    later = [
        checkpoint
        for checkpoint in complete
        if checkpoint.ids != newest.ids
        and not (checkpoint.step == newest.step and checkpoint.ids > newest.ids)  # only partners have come
        and all(number >= before.get(replica, 0) for replica, number in checkpoint.snapshots.items())
    ]
    if not later:
        return None
    return replace(later[-1], created_ns=max(later[-1].created_ns, newest.created_ns + 1))


def _checkpoint(job: Job, step: int | None, parts: Mapping[str, Saved]) -> Checkpoint:
    latest = max(parts.values(), key=lambda one: (one.created_ns, one.id))
    return Checkpoint(
        job=job,
        lineage=replace(latest.lineage, groups=0, part=0),
        step=step,
        created_ns=latest.created_ns,
        snapshots={replica: one.id.number for replica, one in parts.items()},
    )


def _shape(lineage: Lineage) -> tuple[str, int, str]:
    return lineage.run, lineage.world_size, lineage.topology
