"""Restarts of jobs: which step was chosen for one, and which ranks have gone on from it.

It keeps no truth of its own: what was saved, and who has joined which restart, comes with every report, so another
coordinator that has heard all nodes answers the same. Time comes in; what is decided is ``choosing.py``'s. The
invariant: whoever joins a restart has its step, and a step is never changed once a rank has joined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.completeness import whole_steps
from fuse_tier.coordinate.choosing import Current, Known, choose
from fuse_tier.coordinate.directory import Directory, Presence
from fuse_tier.coordinate.needed import Listed, needed_parts, on_several
from fuse_tier.coordinate.standing import Held, standings
from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import epoch_of
from fuse_tier.errors import NotFound, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import Report
from fuse_tier.restarts import Backup, Mark, Question, Resumption, Verdict, Wish
from fuse_tier.standing import Standing, merged

_COUNT_EVERY_SECONDS = 1.0  # what is complete, at most; of a job on more nodes than a thousand, more seldom
_NODES_COUNTED_IN_A_SECOND = 1000
_FORGET_SECONDS = 60.0  # a job of which nobody has anything, and nobody asks


@dataclass(slots=True)
class _Begun:
    """The last restart of a run. Who has joined it, under which epoch, is kept here, also of nodes that are gone."""

    restart: int
    step: int | None
    is_forced: bool = False
    is_heard: bool = False
    is_backed_up: bool = False  # who asked has seen the step in the bucket
    wish: str = ""  # a person's, followed with this restart or with one before it
    joined: dict[str, int] = field(default_factory=dict)

    def is_pending(self, wish: Wish) -> bool:
        """Whether nobody has started by a person's wish, neither with this restart nor before."""
        return self.wish != wish.text or (self.is_forced and not self.joined)


@dataclass(slots=True)
class _Job:
    """What is known of a job, by node."""

    saved: dict[str, dict[Identity, tuple[Saved, ...]]] = field(default_factory=dict)
    marks: set[Mark] = field(default_factory=set)
    begun: dict[str, _Begun] = field(default_factory=dict)  # the last restart of each run
    resumed: dict[Identity, tuple[str, Resumption]] = field(default_factory=dict)  # and on which node
    damaged: set[SnapshotId] = field(default_factory=set)
    counted_at: float = float("-inf")  # what is complete
    counted_when: int = -1  # of the directory's comings and goings
    asked_at: float = float("-inf")
    is_changed: bool = True
    needed: dict[Identity, tuple[int, ...]] = field(default_factory=dict)  # parts of the newest complete checkpoints


class Restarts:
    """Of all jobs of one cluster whose size is known."""

    def __init__(self, directory: Directory, wish_of: Callable[[Job], Wish | None] = lambda _: None) -> None:
        """``wish_of`` tells what people have written on a job. Raises InvalidRequest for what cannot be read."""
        self._directory = directory
        self._wish_of = wish_of
        self._jobs: dict[Job, _Job] = {}
        self._of_node: dict[str, set[Job]] = {}
        self._resumed_on: dict[str, set[Identity]] = {}

    # ---- what nodes tell ----

    def hear(self, report: Report) -> None:
        """A node's report, which the directory has accepted."""
        saved: dict[Job, dict[Identity, tuple[Saved, ...]]] = {}
        for identity, several in report.facts.saved.items():
            saved.setdefault(Job.of(identity), {})[identity] = several
        for job in self._of_node.get(report.node, set()) - saved.keys():
            self._jobs[job].saved.pop(report.node, None)
            self._jobs[job].is_changed = True
        for job, of_job in saved.items():
            known = self._jobs.setdefault(job, _Job())
            if known.saved.get(report.node) != of_job:
                known.saved[report.node] = of_job
                known.is_changed = True
        self._of_node[report.node] = set(saved)
        self._hear_resumed(report.node, report.facts.resumed)
        for mark in report.facts.marks:
            self._jobs.setdefault(mark.job, _Job()).marks.add(mark)

    def _hear_resumed(self, node: str, resumed: Mapping[Identity, Resumption]) -> None:
        for identity in self._resumed_on.get(node, set()) - resumed.keys():
            self._drop(identity)
        for identity, one in resumed.items():
            before = self._job(identity).resumed.get(identity)
            if before is None or one.restart > before[1].restart or before[0] == node:
                self._keep(identity, node, one)

    def _job(self, identity: Identity) -> _Job:
        return self._jobs.setdefault(Job.of(identity), _Job())

    def _keep(self, identity: Identity, node: str, one: Resumption) -> None:
        job = self._job(identity)
        if job.resumed.get(identity) == (node, one):
            return
        self._drop(identity)
        job.resumed[identity] = (node, one)
        self._resumed_on.setdefault(node, set()).add(identity)
        job.is_changed = True
        begun = job.begun.get(one.run)
        if begun is None or one.restart > begun.restart:
            begun = job.begun[one.run] = _Begun(one.restart, one.step, is_heard=True, wish=one.wish)
        if one.restart == begun.restart:
            begun.joined[identity.replica] = one.epoch

    def _drop(self, identity: Identity) -> None:
        if (before := self._job(identity).resumed.pop(identity, None)) is not None:
            self._resumed_on[before[0]].discard(identity)

    def forget(self, known: Collection[str], now: float) -> None:
        """Only these nodes are known any more."""
        for node in self._of_node.keys() - set(known):
            for job in self._of_node.pop(node):
                self._jobs[job].saved.pop(node, None)
                self._jobs[job].is_changed = True
        for node in self._resumed_on.keys() - set(known):
            for identity in list(self._resumed_on[node]):
                self._drop(identity)
            del self._resumed_on[node]
        for name, known_job in list(self._jobs.items()):
            is_empty = not (known_job.saved or known_job.resumed or known_job.marks)
            if is_empty and now - known_job.asked_at > _FORGET_SECONDS:
                del self._jobs[name]

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
        job, lineage = self._job(question.identity), question.lineage
        job.asked_at = now
        job.damaged |= {SnapshotId(question.identity, number) for number in question.lacking}
        if question.lacking:
            job.is_changed = True
        question = replace(question, backups=self._usable(question, job))
        begun = job.begun.get(lineage.run)
        wish = self._wish_of(Job.of(question.identity)) if question.forced is None else None
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
            job.begun[lineage.run] = _Begun(number, verdict.step, question.forced is not None, wish=followed)
        if verdict.restart and any(one.step == verdict.step for one in question.backups):
            job.begun[lineage.run].is_backed_up = True
        return replace(verdict, wish=job.begun[lineage.run].wish) if verdict.restart else verdict

    def join(self, identity: Identity, node: str, resumption: Resumption, now: float) -> None:
        """A volume has the files of the step that was chosen, and its pod is about to start.

        Raises TierUnavailable when another choice has been made, or nobody here knows of this one: ask again.
        """
        owned = self._directory.owner(identity, now)
        begun = self._job(identity).begun.get(resumption.run)
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
        self._keep(identity, node, replace(resumption, epoch=owned.epoch))

    def _can_be_had(self, identity: Identity, begun: _Begun, run: str, now: float) -> bool:
        """Whether every rank can still get its part of the step that was chosen."""
        if begun.step is None or begun.is_backed_up:
            return True
        job = self._job(identity)
        shapes = {
            one.lineage
            for of_node in job.saved.values()
            for several in of_node.values()
            for one in several
            if one.lineage.run == run and one.step == begun.step
        }
        alive = self._directory.alive(job.saved, now)
        return any(begun.step in whole_steps(self._parts(job, one, alive), one.world_size) for one in shapes)

    def needed(self, node: str, now: float) -> dict[Identity, tuple[int, ...]]:
        """Of what a node lists, the parts of the newest complete checkpoints: they stay, though newer ones come."""
        needed: dict[Identity, tuple[int, ...]] = {}
        if not self._directory.is_settled(now):
            return needed  # what is complete cannot be told before all are heard
        for name in self._of_node.get(node, ()):
            job = self._jobs[name]
            around = self._directory.comings_and_goings
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
        return tuple(mark for name in self._of_node.get(node, ()) for mark in self._jobs[name].marks)

    # ---- what people ask ----

    def standings(self, now: float, wanted: Job | None = None) -> tuple[Standing, ...]:
        """The complete checkpoints of one job, or of all, and where they are; the newest first."""
        presence = self._directory.presence(now)
        told = [one for known in presence.values() for one in known.standings if wanted in (None, one.job)]
        for name in self._jobs if wanted is None else [wanted]:
            if (job := self._jobs.get(name)) is not None:
                told += standings(name, self._held(job, presence), self._bad(job))
        return merged(told)

    def _held(self, job: _Job, presence: Mapping[str, Presence]) -> Iterator[Held]:
        for node, volumes in job.saved.items():
            known = presence.get(node)
            for identity, several in volumes.items():
                is_copy = known is not None and identity not in known.mounted
                for one in several:
                    yield Held(one, known is not None and known.alive, is_copy)

    def _bad(self, job: _Job) -> frozenset[SnapshotId]:
        every = {one for of_node in job.saved.values() for several in of_node.values() for one in several}
        marked = {
            one.id for one in every if any(mark.is_on(one.lineage.run, one.step, one.id.number) for mark in job.marks)
        }
        return frozenset(marked | job.damaged)

    # ---- what is known ----

    def _known(self, question: Question, job: _Job, now: float) -> Known:
        presence = self._directory.presence(now)
        gone = {node for node, one in presence.items() if not one.alive and one.gone_seconds < Deadline.RETURN}
        alive = {node for node, one in presence.items() if one.alive}
        # What only the owner had that is gone was not copied, and a job does not wait for that.
        owned = {(node, identity) for node in gone for identity in presence[node].mounted}
        lost = {(node, identity) for node in alive for identity in self._lost(node, presence[node], now)}
        here = self._parts(job, question.lineage, alive, lost)
        copies = self._parts(job, question.lineage, gone, owned)
        ever = self._parts(job, question.lineage, job.saved, lost, be_it_bad=True)
        return Known(
            here,
            _merge(here, copies),
            ever,
            self._parts(job, question.lineage, job.saved, lost),
            self._going_on(job, question.lineage.run, now),
            _brought(presence, Job.of(question.identity)),
            self._other_shapes(job, question.lineage),
        )

    def _lost(self, node: str, presence: Presence, now: float) -> Iterator[Identity]:
        """What a node has mounted although it is another one's by now: what it saves is not the volume's."""
        for identity in presence.mounted:
            owned = self._directory.owner(identity, now)
            if owned is not None and owned.node != node:
                yield identity

    def _parts(
        self,
        job: _Job,
        lineage: Lineage,
        nodes: Iterable[str],
        but: Collection[tuple[str, Identity]] = (),
        *,
        be_it_bad: bool = False,
    ) -> dict[str, list[Saved]]:
        found: dict[str, dict[int, Saved]] = {}
        for node in nodes:
            for identity, several in job.saved.get(node, {}).items():
                if (node, identity) in but:
                    continue
                for one in several:
                    if _shape(one.lineage) == _shape(lineage) and (be_it_bad or self._counts(job, one)):
                        found.setdefault(identity.replica, {})[one.id.number] = one
        return {replica: list(numbered.values()) for replica, numbered in found.items()}

    def _counts(self, job: _Job, one: Saved) -> bool:
        if one.id in job.damaged or any(mark.is_on(one.lineage.run, one.step, one.id.number) for mark in job.marks):
            return False
        return not self._is_given_up(one.id.identity, one.lineage.run, one.step, one.id.number)

    def _is_given_up(self, identity: Identity, run: str, step: int | None, number: int) -> bool:
        """Whether it is of the life before the volume's last restart, and beyond the step of that."""
        last = self._last_restart(identity, run)
        if last is None or epoch_of(number) >= last.epoch or step is None:
            return False
        return last.step is None or step > last.step

    def _last_restart(self, identity: Identity, run: str) -> Resumption | None:
        """The last one of a run that a volume is known to have joined, though the node that would tell is gone."""
        job = self._job(identity)
        told = job.resumed.get(identity)
        resumed = told[1] if told is not None and told[1].run == run else None
        begun = job.begun.get(run)
        if begun is None or identity.replica not in begun.joined:
            return resumed
        if resumed is not None and resumed.restart >= begun.restart:
            return resumed
        return Resumption(run, begun.restart, begun.step, begun.joined[identity.replica])

    def _usable(self, question: Question, job: _Job) -> tuple[Backup, ...]:
        run, identity = question.lineage.run, question.identity
        return tuple(
            one
            for one in question.backups
            if SnapshotId(identity, one.number) not in job.damaged
            and not any(mark.is_on(run, one.step, one.number) for mark in job.marks)
            and (one.step == question.forced or not self._is_given_up(identity, run, one.step, one.number))
        )

    def _going_on(self, job: _Job, run: str, now: float) -> dict[str, Resumption]:
        found: dict[str, Resumption] = {}
        for identity, (node, one) in job.resumed.items():
            owned = self._directory.owner(identity, now)
            if one.run == run and owned is not None and owned.node == node:
                found[identity.replica] = one
        return found

    def _other_shapes(self, job: _Job, lineage: Lineage) -> tuple[Lineage, ...]:
        return tuple(
            {
                one.lineage
                for of_node in job.saved.values()
                for several in of_node.values()
                for one in several
                if one.lineage.run == lineage.run and _shape(one.lineage) != _shape(lineage)
            }
        )

    def _count(self, job: _Job, now: float) -> dict[Identity, tuple[int, ...]]:
        alive = self._directory.alive(job.saved, now)
        awaited = job.saved.keys() - alive - self._directory.gone_for(Deadline.RETURN, now)
        if awaited:
            job.is_changed = True  # it is counted again until they are back, or have been gone for longer
        lineages = {
            _shape(one.lineage): one.lineage
            for of_node in job.saved.values()
            for several in of_node.values()
            for one in several
        }
        return needed_parts(
            [
                Listed(one.world_size, self._parts(job, one, alive), self._parts(job, one, job.saved))
                for one in lineages.values()
            ],
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


def _shape(lineage: Lineage) -> tuple[str, int, str]:
    return lineage.run, lineage.world_size, lineage.topology
