"""What is told of a job once: that it goes on, that a step is on peers, that its backups begin to fail.

In the log always; and to observers, who tell others (Kubernetes has events). Nothing here decides anything, and
nothing is lost with it: who starts anew tells at most what was told before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import structlog

from fuse_tier.checkpoints import Job
from fuse_tier.identity import Identity
from fuse_tier.members import Report
from fuse_tier.restarts import Resumption
from fuse_tier.standing import PEER, Standing

log = structlog.get_logger(__name__)

_Shape = tuple[Job, str, int]  # with the run, and how many ranks


class Observer:
    """Who is told besides: of whatever of this it takes. No call may block."""

    def complete(self, standings: Sequence[Standing]) -> None:
        """All checkpoints that are complete now: every few seconds, also when nothing has changed."""

    def addresses(self, addresses: Mapping[str, str]) -> None:
        """Of training jobs' own coordinators, by job: all of them, as often."""

    def resumed(self, job: Job, step: int, ranks: int, tiers: Sequence[str]) -> None:
        """A job goes on from a step, which was on these tiers."""

    def not_backed_up(self, identity: Identity, reason: str) -> None:
        """A volume's backup has failed, the first of its job since they last went well."""


class Milestones:
    """Of all jobs of one cluster."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self._standings: tuple[Standing, ...] = ()
        self._restarts: dict[tuple[Job, str], int] = {}
        self._replicated: dict[_Shape, set[int]] = {}
        self._failing_of_node: dict[str, frozenset[Identity]] = {}

    def look(self, standings: tuple[Standing, ...], addresses: Mapping[str, str] | None = None) -> None:
        """This is what is complete now, and where training jobs have their coordinators, as told by all nodes."""
        gone = {one.job for one in self._standings} - {one.job for one in standings}
        self._restarts = {key: restart for key, restart in self._restarts.items() if key[0] not in gone}
        self._standings = standings
        on_peers = {(one.job, one.run, one.ranks, one.step) for one in standings if PEER in one.tiers}
        shapes: dict[_Shape, set[int]] = {}
        for one in standings:
            if one.step is not None:
                shapes.setdefault((one.job, one.run, one.ranks), set()).add(one.step)
        for shape, there in shapes.items():
            told = self._replicated.get(shape)
            now = {step for step in there if (*shape, step) in on_peers}
            # Of those from before this coordinator the newest will do.
            for step in sorted(now - told) if told is not None else sorted(now)[-1:]:
                job, run, ranks = shape
                log.info("coordinator.step_replicated", job=str(job), run=run, ranks=ranks, step=step,
                         said=f"All files were replicated globally for step {step}")  # fmt: skip
            self._replicated[shape] = now | ((told or set()) & there)
        for shape in self._replicated.keys() - shapes.keys():
            del self._replicated[shape]
        for observer in self._observers:
            observer.complete(standings)
            observer.addresses(addresses or {})

    def joined(self, identity: Identity, resumption: Resumption) -> None:
        """A rank goes on from the step that was chosen for all."""
        job = Job.of(identity)
        if resumption.step is None or self._restarts.get((job, resumption.run), 0) >= resumption.restart:
            return
        self._restarts[job, resumption.run] = resumption.restart
        found = [
            one for one in self._standings
            if (one.job, one.run, one.step) == (job, resumption.run, resumption.step)
        ]  # fmt: skip
        ranks = max((one.ranks for one in found), default=0)
        tiers = tuple(dict.fromkeys(tier for one in found for tier in one.tiers))
        log.info("coordinator.job_resumed", job=str(job), run=resumption.run, step=resumption.step, tiers=tiers)
        for observer in self._observers:
            observer.resumed(job, resumption.step, ranks, tiers)

    def hear(self, report: Report) -> None:
        """What a node says of its backups."""
        failing = report.facts.failing
        still = self._failing_of_node.pop(report.node, frozenset()) & failing.keys()
        if not failing:
            return
        self._failing_of_node[report.node] = still
        if len(still) < len(failing):
            known = {Job.of(identity) for several in self._failing_of_node.values() for identity in several}
            for identity, reason in failing.items():
                if (job := Job.of(identity)) not in known:
                    known.add(job)
                    log.info("coordinator.backup_failing", identity=str(identity), member=report.node, reason=reason)
                    for observer in self._observers:
                        observer.not_backed_up(identity, reason)
            self._failing_of_node[report.node] = frozenset(failing)

    def forget(self, alive: Collection[str]) -> None:
        """Only these nodes hold a lease: what others said of their backups counts no more."""
        for node in self._failing_of_node.keys() - set(alive):
            del self._failing_of_node[node]
