"""What is known of jobs whose size is known, by node: what was saved, and which ranks have joined which restart.

It keeps no truth of its own: all of it comes with reports.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Report
from fuse_tier.restarts import Mark, Resumption, Wish

_FORGET_SECONDS = 60.0  # a job of which nobody has anything, and nobody asks


@dataclass(slots=True)
class Begun:
    """The last restart of a run, and the replicas that have joined it, also those whose nodes are gone."""

    restart: int
    step: int | None
    is_forced: bool = False
    is_heard: bool = False
    is_backed_up: bool = False  # who asked has seen the step in the bucket
    wish: str = ""  # a person's, followed with this restart or with one before it
    joined: set[str] = field(default_factory=set)

    def is_pending(self, wish: Wish) -> bool:
        """Whether nobody has started by a person's wish, neither with this restart nor before."""
        return self.wish != wish.text or (self.is_forced and not self.joined)


@dataclass(slots=True)
class KnownJob:
    """What is known of a job, by node."""

    saved: dict[str, dict[Identity, tuple[Saved, ...]]] = field(default_factory=dict)
    marks: set[Mark] = field(default_factory=set)
    begun: dict[str, Begun] = field(default_factory=dict)  # the last restart of each run
    resumed: dict[Identity, tuple[str, Resumption]] = field(default_factory=dict)  # and on which node
    last: dict[tuple[str, Identity], Resumption] = field(default_factory=dict)
    """By run and volume what was joined last, also of nodes that are gone."""
    damaged: set[SnapshotId] = field(default_factory=set)
    counted_at: float = float("-inf")  # what is complete
    counted_when: int = -1  # of the directory's comings and goings
    asked_at: float = float("-inf")
    is_changed: bool = True
    needed: dict[Identity, tuple[int, ...]] = field(default_factory=dict)  # parts of the newest complete checkpoints


class Jobs:
    """All of one cluster."""

    def __init__(self) -> None:
        self._jobs: dict[Job, KnownJob] = {}
        self._of_node: dict[str, set[Job]] = {}
        self._saved: dict[str, Mapping[Identity, tuple[Saved, ...]]] = {}  # as each node said it last
        self._resumed_on: dict[str, set[Identity]] = {}

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def get(self, job: Job) -> KnownJob | None:
        """None: nobody has told of it."""
        return self._jobs.get(job)

    def on(self, node: str) -> Iterator[KnownJob]:
        """Those that a node has something of."""
        return (self._jobs[name] for name in self._of_node.get(node, ()))

    def hear(self, report: Report) -> None:
        """A node's report, which the directory has accepted."""
        if self._saved.get(report.node) is not report.facts.saved:
            self._hear_saved(report)
        self._hear_resumed(report.node, report.facts.resumed)
        for mark in report.facts.marks:
            self._jobs.setdefault(mark.job, KnownJob()).marks.add(mark)

    def _hear_saved(self, report: Report) -> None:
        self._saved[report.node] = report.facts.saved
        saved: dict[Job, dict[Identity, tuple[Saved, ...]]] = {}
        for identity, several in report.facts.saved.items():
            saved.setdefault(Job.of(identity), {})[identity] = several
        for job in self._of_node.get(report.node, set()) - saved.keys():
            self._jobs[job].saved.pop(report.node, None)
            self._jobs[job].is_changed = True
        for job, of_job in saved.items():
            known = self._jobs.setdefault(job, KnownJob())
            if known.saved.get(report.node) != of_job:
                known.saved[report.node] = of_job
                known.is_changed = True
        self._of_node[report.node] = set(saved)

    def _hear_resumed(self, node: str, resumed: Mapping[Identity, Resumption]) -> None:
        for identity in self._resumed_on.get(node, set()) - resumed.keys():
            self._drop(identity)
        for identity, one in resumed.items():
            before = self.of(identity).resumed.get(identity)
            if before is None or one.restart > before[1].restart or before[0] == node:
                self.keep(identity, node, one)

    def of(self, identity: Identity) -> KnownJob:
        """The job of a volume."""
        return self._jobs.setdefault(Job.of(identity), KnownJob())

    def keep(self, identity: Identity, node: str, one: Resumption) -> None:
        """A volume, on a node, has gone on from something."""
        job = self.of(identity)
        if job.resumed.get(identity) == (node, one):
            return
        self._drop(identity)
        job.resumed[identity] = (node, one)
        self._resumed_on.setdefault(node, set()).add(identity)
        job.is_changed = True
        begun = job.begun.get(one.run)
        if begun is None or one.restart > begun.restart:
            begun = job.begun[one.run] = Begun(one.restart, one.step, is_heard=True, wish=one.wish)
        if one.restart == begun.restart:
            begun.joined.add(identity.replica)
        last = job.last.get((one.run, identity))
        if last is None or one.restart >= last.restart:
            job.last[one.run, identity] = one

    def _drop(self, identity: Identity) -> None:
        if (before := self.of(identity).resumed.pop(identity, None)) is not None:
            self._resumed_on[before[0]].discard(identity)

    def forget(self, known: Collection[str], now: float) -> None:
        """Only these nodes are known any more."""
        for node in self._of_node.keys() - set(known):
            del self._saved[node]
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
