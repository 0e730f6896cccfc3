"""Restarts of jobs: which step was chosen for one, and which ranks have gone on from it.

It keeps no truth of its own: what was saved, and who has joined which restart, comes with every report, so another
coordinator that has heard all nodes answers the same. Time comes in; what is decided is ``choosing.py``'s. The
invariant: whoever joins a restart has its step, and a step is never changed once a rank has joined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.completeness import producible_steps
from fuse_tier.coordinate.choosing import Current, Known, choose
from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.eligible import (
    bad_parts,
    last_restarts,
    other_shapes,
    parts,
    shape,
    usable,
    without_given_up,
)
from fuse_tier.coordinate.jobs import Begun, Jobs, KnownJob
from fuse_tier.coordinate.needed import Listed, needed_parts, on_several
from fuse_tier.coordinate.nodes import Presence
from fuse_tier.coordinate.standing import Held, standings
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import NotFound, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Report
from fuse_tier.restarts import Mark, Question, Resumption, Verdict, Wish
from fuse_tier.standing import Standing, merged

_COUNT_EVERY_SECONDS = 1.0  # what is complete, at most; of a job on more nodes than 500, more seldom
_NODES_COUNTED_IN_A_SECOND = 500
_STEWARD_SECONDS = 60.0  # the next one has looked at the bucket; what the last one said of it counts meanwhile


class Restarts:
    """Of all jobs of one cluster whose size is known."""

    def __init__(self, directory: Directory, wish_of: Callable[[Job], Wish | None] = lambda _: None) -> None:
        """``wish_of`` tells what people have written on a job. Raises InvalidRequest for what cannot be read."""
        self._directory = directory
        self._wish_of = wish_of
        self._jobs = Jobs()

    def hear(self, report: Report) -> None:
        """A node's report, which the directory has accepted."""
        self._jobs.hear(report)

    def forget(self, known: Collection[str], now: float) -> None:
        """Only these nodes are known any more."""
        self._jobs.forget(known, now)

    # ---- what nodes ask ----

    def ask(self, question: Question, node: str, now: float) -> Verdict:
        """From which step a volume goes on that is the node's already.

        Raises TierUnavailable (ask again), and what ``choose`` raises.
        """
        if not self._directory.is_settled(now):
            raise TierUnavailable("the coordinator has just started and hears first who has what: try again")
        owned = self._directory.owner(question.identity, now)
        if owned is None or owned.node != node:
            raise TierUnavailable(f"{question.identity} is not node {node}'s yet: it has to claim it first")
        job, lineage = self._jobs.of(question.identity), question.lineage
        job.asked_at = now
        lacking = {SnapshotId(question.identity, number) for number in question.lacking}
        lacking |= {one for one in question.lacking_partners if Job.of(one.identity) == Job.of(question.identity)}
        job.damaged |= lacking
        job.is_changed = job.is_changed or bool(lacking)
        question = replace(question, backups=usable(question, job))
        begun = job.begun.get(lineage.run)
        is_asked = question.forced is None and not question.fills  # from which step to go on
        wish = self._wish_of(Job.of(question.identity)) if is_asked else None
        if wish is not None and (begun is None or begun.is_pending(wish)):
            question = replace(question, forced=_wished_step(wish, question))
        current = None
        if begun is not None:
            joined = frozenset(begun.joined)
            current = Current(begun.restart, begun.step, joined, begun.is_forced, begun.is_heard)
        number = max(owned.epoch, (begun.restart if begun else 0) + 1)
        verdict = choose(question, self._known(question, job, now), current, number)
        if verdict.restart == number:
            followed = wish.text if wish is not None else ""
            if begun is not None and wish is None and question.forced is not None:
                followed = begun.wish  # nobody has looked what stands on the job: it was followed all the same
            job.begun[lineage.run] = Begun(number, verdict.step, question.forced is not None, wish=followed)
        if verdict.restart and any(one.step == verdict.step for one in question.backups):
            job.begun[lineage.run].is_backed_up = True
        if not verdict.restart:
            return verdict
        last = job.last.get((lineage.run, question.identity))
        points = () if last is None else last.branch_points
        return replace(verdict, wish=job.begun[lineage.run].wish, branch_points=points)

    def join(self, identity: Identity, node: str, resumption: Resumption, now: float) -> None:
        """A volume has the files of the step that was chosen, and its pod is about to start.

        Raises TierUnavailable when another choice has been made, or nobody here knows of this one: ask again.
        """
        owned = self._directory.owner(identity, now)
        begun = self._jobs.of(identity).begun.get(resumption.run)
        known = None if begun is None else (begun.restart, begun.step)
        if not self._directory.is_settled(now) or known != (resumption.restart, resumption.step):
            raise TierUnavailable(f"{identity}: the step to go on from is chosen again")
        if begun is not None and not begun.joined and not self._can_be_had(identity, begun, resumption.run, now):
            # Nobody has started: so all can still go back together, and from then on they could not.
            raise TierUnavailable(
                f"{identity}: a part of step {begun.step} was lost while it was restored: the step is chosen again"
            )
        if owned is None or owned.node != node:
            raise TierUnavailable(f"{identity} is not node {node}'s any more")
        self._jobs.keep(identity, node, replace(resumption, epoch=owned.epoch))

    def _can_be_had(self, identity: Identity, begun: Begun, run: str, now: float) -> bool:
        """Whether every rank can still get its part of the step that was chosen."""
        if begun.step is None or begun.is_backed_up:
            return True
        job = self._jobs.of(identity)
        shapes = {
            one.lineage
            for of_node in job.saved.values()
            for several in of_node.values()
            for one in several
            if one.lineage.run == run and begun.step in one.steps
        }
        alive = self._directory.nodes.alive(job.saved, now)
        return any(begun.step in producible_steps(parts(job, one, alive), one.world_size) for one in shapes)

    def needed(self, node: str, now: float) -> dict[Identity, tuple[int, ...]]:
        """Of what a node lists, the parts of the newest complete checkpoints: they stay, though newer ones come."""
        needed: dict[Identity, tuple[int, ...]] = {}
        if not self._directory.is_settled(now):
            return needed  # what is complete cannot be told before all are heard
        for job in self._jobs.on(node):
            around = self._directory.nodes.comings_and_goings
            every = max(_COUNT_EVERY_SECONDS, len(job.saved) / _NODES_COUNTED_IN_A_SECOND)
            if (job.is_changed or job.counted_when != around) and now - job.counted_at >= every:
                job.is_changed, job.counted_at, job.counted_when = False, now, around
                job.needed = self._count(job, now)
            listed = job.saved.get(node, {})
            if job.counted_when == around:
                needed |= {one: job.needed[one] for one in listed if one in job.needed}
            else:  # somebody has gone or come since: until it is counted again, all stays
                needed |= {one: tuple(saved.id.number for saved in several) for one, several in listed.items()}
        return needed

    def marks(self, node: str) -> tuple[Mark, ...]:
        """Which steps of the jobs that a node has something of are not to be restored."""
        return tuple(mark for job in self._jobs.on(node) for mark in job.marks)

    # ---- what people ask ----

    def standings(self, now: float, wanted: Job | None = None) -> tuple[Standing, ...]:
        """The complete checkpoints of one job, or of all, and where they are; the newest first."""
        presence = self._directory.nodes.presence(now)
        told = [
            one
            for known in presence.values()
            if known.alive or known.gone_seconds < _STEWARD_SECONDS
            for one in known.standings
            if wanted in (None, one.job)
        ]
        for name in self._jobs if wanted is None else [wanted]:
            if (job := self._jobs.get(name)) is not None:
                told += standings(name, self._held(job, presence), bad_parts(job))
        return merged(told)

    def _held(self, job: KnownJob, presence: Mapping[str, Presence]) -> Iterator[Held]:
        for node, volumes in job.saved.items():
            known = presence.get(node)
            for identity, several in volumes.items():
                is_copy = known is not None and identity not in known.mounted
                for one in filter(None, (without_given_up(job, one) for one in several)):
                    yield Held(one, known is not None and known.alive, is_copy)

    # ---- what is known ----

    def _known(self, question: Question, job: KnownJob, now: float) -> Known:
        presence = self._directory.nodes.presence(now)
        gone = {node for node, one in presence.items() if not one.alive and one.gone_seconds < Deadline.RETURN}
        alive = {node for node, one in presence.items() if one.alive}
        # What only the owner had that is gone was not copied, and a job does not wait for that.
        owned = {(node, identity) for node in gone for identity in presence[node].mounted}
        lost = {(node, identity) for node in alive for identity in self._lost(node, presence[node], now)}
        here = parts(job, question.lineage, alive, lost)
        copies = parts(job, question.lineage, gone, owned)
        ever = parts(job, question.lineage, job.saved, lost, be_it_bad=True)
        return Known(
            here,
            _merge(here, copies),
            ever,
            parts(job, question.lineage, job.saved, lost),
            self._going_on(job, question.lineage.run, now),
            last_restarts(job, question.lineage.run),
            _brought(presence, Job.of(question.identity)),
            other_shapes(job, question.lineage),
        )

    def _lost(self, node: str, presence: Presence, now: float) -> Iterator[Identity]:
        """What a node has mounted although it is another one's by now: what it saves is not the volume's."""
        for identity in presence.mounted:
            owned = self._directory.owner(identity, now)
            if owned is not None and owned.node != node:
                yield identity

    def _going_on(self, job: KnownJob, run: str, now: float) -> dict[str, Resumption]:
        found: dict[str, Resumption] = {}
        for identity, (node, one) in job.resumed.items():
            owned = self._directory.owner(identity, now)
            # Whose files are claimed anew, and are those of before, begins again as well.
            if one.run == run and not one.is_over and owned is not None and owned.node == node:
                found[identity.replica] = one
        return found

    def _count(self, job: KnownJob, now: float) -> dict[Identity, tuple[int, ...]]:
        alive = self._directory.nodes.alive(job.saved, now)
        awaited = job.saved.keys() - alive - self._directory.nodes.gone_for(Deadline.RETURN, now)
        if awaited:
            job.is_changed = True  # it is counted again until they are back, or have been gone for longer
        lineages = {
            shape(one.lineage): one.lineage
            for of_node in job.saved.values()
            for several in of_node.values()
            for one in several
        }
        listed = []
        for one in lineages.values():
            here = parts(job, one, alive)
            ever = here if len(alive) == len(job.saved) else parts(job, one, job.saved)
            listed.append(Listed(one.world_size, here, ever))
        return needed_parts(
            listed,
            on_several(chain.from_iterable(job.saved[node].values()) for node in alive),
            job.needed,
            is_awaited=bool(awaited),
        )


def _wished_step(wish: Wish, question: Question) -> int | None:
    """Raises NotFound for a backup that there is not."""
    if not wish.backup:
        return wish.step
    found = [one.step for one in question.backups if one.name == wish.backup]
    if not found:
        there = ", ".join(one.name for one in question.backups) or "none"
        raise NotFound(f"there is no backup {wish.backup} of {Job.of(question.identity)}: those that are: {there}")
    return found[0]


def _merge(one: Mapping[str, list[Saved]], other: Mapping[str, list[Saved]]) -> dict[str, list[Saved]]:
    return {replica: [*one.get(replica, ()), *other.get(replica, ())] for replica in {*one, *other}}


def _brought(presence: Mapping[str, Presence], job: Job) -> dict[str, int]:
    brought: dict[str, int] = {}
    for one in presence.values():
        for identity, numbers in one.bucket.items():
            if Job.of(identity) == job and numbers:
                brought[identity.replica] = max(numbers[-1], brought.get(identity.replica, 0))
    return brought
