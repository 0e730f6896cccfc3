"""From which step all ranks of a job go on: a pure decision from what is known of the job at one moment.

The newest step that every rank has, in RAM anywhere or in the bucket. Never one that is older than where a rank has
begun that is at work now, nor one that it has not come to since: its files cannot be changed under it. And nothing is
begun anew, or from an older step, while it only seems that something is lost: what a node has that went away a moment
ago is waited for, and where steps were saved of which no complete one is left, a person has to say what is to become
of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.completeness import has_every_part, partner_of, producible_steps, representatives
from fuse_tier.coordinate.passed import AtWork, not_come_to
from fuse_tier.errors import NotFound, RunMismatch, TierRefused, TierUnavailable
from fuse_tier.manifest import Lineage
from fuse_tier.restarts import Backup, Question, Resumption, Verdict

Parts = Mapping[str, Collection[Saved]]
"""Snapshots by replica."""

_NOTHING = -1  # in place of a step: no files
_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one run of a job. Only in ``ever`` is what was given up or is damaged."""

    here: Parts  # what nodes list that are alive
    awaited: Parts  # that, and copies that nodes have which went away a moment ago
    ever: Parts  # whatever nodes have, or had that have not been heard of for longer, be it good or bad
    wherever: Parts = field(default_factory=dict)  # as ``here``, of all nodes, be they gone for long
    going_on: Mapping[str, Resumption] = field(default_factory=dict)  # of replicas that are mounted on live nodes
    restarts: Mapping[str, int] = field(default_factory=dict)  # the last that each replica has joined, mounted or not
    brought: Mapping[str, int] = field(default_factory=dict)  # the newest of each that a node brought to the bucket
    other_shapes: Collection[Lineage] = ()  # in which snapshots of the run were taken, too


@dataclass(frozen=True, slots=True)
class Current:
    """The last restart of a run, and who has joined it."""

    restart: int
    step: int | None
    joined: frozenset[str]
    is_forced: bool = False
    is_heard: bool = False  # from nodes, by a coordinator that was not there when it began: others may have joined


def choose(question: Question, known: Known, current: Current | None, restart: int) -> Verdict:
    """The answer to a rank; ``restart`` is the number of the one that begins if ``current`` does not go on.

    A restart goes on while ranks ask that have not joined it, all of these can have its step, and no newer one has
    been completed since. Raises TierUnavailable (ask again), RunMismatch, TierRefused, and NotFound when a step is
    forced that is not complete.
    """
    if _takes_newest(question, known):
        return Verdict(0)
    complete = _complete(question, known.here)
    if question.forced is not None and question.forced not in complete:
        raise NotFound(_not_complete(question, complete))
    if current is not None and (part := _part_in(current, question, known)) is not None:
        others = _others(question, known, current.restart)
        return Verdict(current.restart, current.step, part.number, others, partner=part.partner)
    step = question.forced
    if step is None:
        complete = _reached(question, known, known.here)
        step = _newest(complete)
        _check_nothing_newer(question, known, complete)
    _check_others(question, known, step)
    if step is None:
        _check_beginning(question, known)
    part = _NO_PART if step is None else complete[step]
    return Verdict(restart, step, part.number, _others(question, known, restart), partner=part.partner)


def _takes_newest(question: Question, known: Known) -> bool:
    """Whether the job has snapshots, none of which names a step, and nobody at work has begun from one.

    Raises RunMismatch for one of another shape.
    """
    if question.backups or question.forced is not None:
        return False
    if any(known.going_on[replica].step is not None for replica in _others(question, known, 0)):
        return False
    steps = [one.step for several in known.ever.values() for one in several]
    if not steps and known.other_shapes:
        other = next(iter(known.other_shapes))
        raise RunMismatch(
            f"run {question.lineage.run} of {Job.of(question.identity)} was saved with {_shape(other)}, and not with "
            f"{_shape(question.lineage)}: start the job in its old shape, or say `restore: latest` to have each "
            "replica's own files, or name another run to begin empty"
        )
    return bool(steps) and all(step is None for step in steps)


def _shape(lineage: Lineage) -> str:
    topology = f", topology {lineage.topology}" if lineage.topology else ""
    return f"{lineage.world_size} ranks{topology}"


@dataclass(frozen=True, slots=True)
class _Part:
    """What the asker is given of a step. Number 0: a partner's, as soon as the asker says which rank it is."""

    number: int = 0
    partner: str = ""  # whose snapshot it is; empty: the asker's own

    @property
    def is_own(self) -> bool:
        return bool(self.number) and not self.partner


_NO_PART = _Part()


def _complete(question: Question, saved: Parts) -> dict[int, _Part]:
    """The steps that can be had from RAM or from the bucket, with the asker's part of each."""
    found = {
        step: _part_of(question, step, parts)
        for step, parts in producible_steps(saved, question.lineage.world_size).items()
    }
    for step in {backup.step for backup in question.backups} - found.keys():
        found[step] = _part_of(question, step, {})
    return found


def _reached(question: Question, known: Known, saved: Parts) -> dict[int, _Part]:
    """As ``_complete``, without what ranks that are at work have not come to."""
    complete = _complete(question, saved)
    behind = _behind(question, known, saved, complete)
    return {step: part for step, part in complete.items() if not behind[step]}


def _behind(question: Question, known: Known, saved: Parts, steps: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Of each step the replicas at work beside the asker that have not come to it."""
    parts, at_work = producible_steps(saved, question.lineage.world_size), _at_work(question, known)
    return {step: not_come_to(step, parts.get(step, {}), _backups_of(question, step), at_work) for step in steps}


def _backups_of(question: Question, step: int) -> tuple[Backup, ...]:
    return tuple(backup for backup in question.backups if backup.step == step)


def _at_work(question: Question, known: Known) -> AtWork:
    others = _others(question, known, 0)
    saved = {one: [*known.here.get(one, ()), *known.wherever.get(one, ())] for one in others}
    return AtWork(
        {one: known.going_on[one] for one in others},
        {
            one: max((step for part in several for step in part.steps), default=_NOTHING)
            for one, several in saved.items()
        },
        known.restarts,
    )


def _part_of(question: Question, step: int, parts: Mapping[str, Saved]) -> _Part:
    """The asker's own, in RAM or in the bucket; else a partner's, from the same places."""
    own = parts.get(question.identity.replica)
    backups = _backups_of(question, step)
    numbers = [one.number for one in backups if not one.partner] + ([own.id.number] if own is not None else [])
    if any(numbers):
        return _Part(max(numbers))
    if (partner := partner_of(question.lineage, parts)) is not None:
        return _Part(parts[partner].id.number, partner)
    return next((_Part(one.number, one.partner) for one in backups if one.partner), _NO_PART)


def _newest(complete: Mapping[int, _Part]) -> int | None:
    """By its snapshots' numbers: a job that has gone back to an earlier step goes on from there.

    Of a step that only partners have, the asker's own numbers tell nothing but where those before it are.
    """

    def order(step: int) -> tuple[int, int]:
        if complete[step].is_own:
            return complete[step].number, step
        return max((part.number for lower, part in complete.items() if lower < step and part.is_own), default=0), step

    return max(complete, key=order, default=None)


def _rank(step: int | None) -> int:
    return _NOTHING if step is None else step


def _part_in(current: Current, question: Question, known: Known) -> _Part | None:
    """The asker's part of the restart that has begun; None when that does not go on."""
    replica = question.identity.replica
    fills = question.fills == current.restart and replica in current.joined
    if not fills and not _goes_on(current, question, known):
        return None
    if current.step is None:
        return _NO_PART
    parts = {
        one: part
        for one, several in known.here.items()
        if (part := representatives(several).get(current.step)) is not None
    }
    if all(backup.step != current.step for backup in question.backups) and not has_every_part(parts.values()):
        at_work = {one for one, resumed in known.going_on.items() if resumed.restart == current.restart}
        if replica not in parts or len(parts.keys() | at_work) < question.lineage.world_size:
            return None
    return _part_of(question, current.step, parts)


def _goes_on(current: Current, question: Question, known: Known) -> bool:
    """Whether a restart is still open for the asker."""
    if question.identity.replica in current.joined or question.forced not in (None, current.step):
        return False
    if current.is_heard and _has_gone_on(current, known):
        return False
    if question.forced is not None:
        return True
    since = tuple(backup for backup in question.backups if backup.epoch >= current.restart)
    completed = _reached(replace(question, backups=since), known, known.here)
    # What a person has gone back from is given up as soon as somebody has joined.
    is_over = (current.joined or not current.is_forced) and any(step > _rank(current.step) for step in completed)
    return not is_over


def _has_gone_on(current: Current, known: Known) -> bool:
    """Whether somebody has saved since a restart: all had joined it then, whoever can be asked now.

    Those who saved are known to have joined it, or the epoch of what they saved is not before that of the restart.
    """
    return any(
        one.step is not None
        and one.step > _rank(current.step)
        and (replica in current.joined or one.id.epoch >= current.restart)
        for replica, several in known.wherever.items()
        for one in several
    )


def _check_nothing_newer(question: Question, known: Known, complete: Mapping[int, _Part]) -> None:
    """Raises TierUnavailable when there is, or may be, a newer complete checkpoint, of which somebody is away."""
    newest = _newest(complete)
    job = Job.of(question.identity)
    expected = _newest(_reached(question, known, known.awaited))
    if expected is not None and _rank(expected) > _rank(newest):
        raise TierUnavailable(f"step {expected} of {job} is waited for: a node that has a part of it is away")
    if question.bucket_silent:
        parts = producible_steps(known.here, question.lineage.world_size).get(_rank(newest), {})
        # A part that has newer steps as well may have been brought with those of the others.
        if all(
            known.brought.get(replica, 0) >= part.id.number + (part.step == newest) for replica, part in parts.items()
        ):
            raise TierUnavailable(
                f"{question.bucket_silent}: it may have a newer complete checkpoint of {job}; try again then"
            )


def _check_beginning(question: Question, known: Known) -> None:
    """A job whose first save was never complete begins anew. Raises TierRefused when there was more."""
    saved = {
        replica: sorted({step for one in several for step in one.steps}) for replica, several in known.ever.items()
    }
    if len({step for steps in saved.values() for step in steps}) < 2:
        return
    told = [f"{replica}: {', '.join(map(str, steps)) or 'no step'}" for replica, steps in sorted(saved.items())]
    named = "; ".join(told[:_NAMED_AT_MOST]) + ("; …" if len(told) > _NAMED_AT_MOST else "")
    raise TierRefused(
        f"no step of {Job.of(question.identity)} (run {question.lineage.run}) is complete, of "
        f"{question.lineage.world_size} ranks: {named}. If only some ranks save, say `restore: latest`; to begin "
        "anew, name another run"
    )


def _check_others(question: Question, known: Known, step: int | None) -> None:
    """Raises TierUnavailable when a rank is at work that has begun from a newer step, or has not come to this one."""
    beyond = [replica for replica in _others(question, known, 0) if _rank(known.going_on[replica].step) > _rank(step)]
    if beyond:
        begun = max(_rank(known.going_on[replica].step) for replica in beyond)
        raise TierUnavailable(
            f"{question.identity} can only go back to {_named(step)}, but {_several(beyond)} of its job went on from "
            f"step {begun} and {'is' if len(beyond) == 1 else 'are'} mounted: stop all ranks of the job, then all go "
            "back together"
        )
    behind = () if step is None else _behind(question, known, known.here, [step])[step]
    if behind:  # of its own accord nobody is given such a step
        raise TierUnavailable(
            f"{question.identity} is to go on from {_named(step)}, but {_several(behind)} of its job "
            f"{'is' if len(behind) == 1 else 'are'} mounted and went on from an earlier one: stop all ranks of the "
            "job, then all go on together"
        )


def _others(question: Question, known: Known, restart: int) -> tuple[str, ...]:
    """Replicas beside the asker that are at work and have not joined a restart."""
    own = question.identity.replica
    return tuple(sorted(one for one, resumed in known.going_on.items() if one != own and resumed.restart != restart))


def _several(replicas: Collection[str]) -> str:
    some = ", ".join(sorted(replicas)[:_NAMED_AT_MOST]) + (", …" if len(replicas) > _NAMED_AT_MOST else "")
    return f"replica{'s' if len(replicas) > 1 else ''} {some}"


def _named(step: int | None) -> str:
    return "the beginning" if step is None else f"step {step}"


def _not_complete(question: Question, complete: Collection[int]) -> str:
    there = ", ".join(map(str, sorted(complete))) or "none"
    return f"step {question.forced} of {Job.of(question.identity)} is not complete: those that are: {there}"
