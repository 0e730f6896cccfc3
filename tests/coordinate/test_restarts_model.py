"""Whatever is lost, late or started again: no two ranks of a job go on from different steps, and no complete
checkpoint is lost while somebody has every part of it.

The model plays nodes as their workers behave: what is claimed, asked, restored and joined in that order, what is
listed, what retention leaves. Its ranks save one step after another, some of them ahead of others, and keep the last
three in their trees; containers are started again in place. The coordinator, retention and what is set aside are the
real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from fuse_tier.checkpoints import Saved
from fuse_tier.completeness import whole_steps
from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.restarts import Restarts
from fuse_tier.epochs import epoch_of, number_before
from fuse_tier.errors import IdentityBusy, NotFound, TierRefused, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import LocalFacts, Report
from fuse_tier.replicate.aside import stays_for_job
from fuse_tier.replicate.retention import Keep, plan_retention
from fuse_tier.restarts import Backup, BranchPoint, Question, Resumption, Verdict
from tests.harness.examples import examples

LEASE = 5.0
_KEPT_BESIDE = 2  # steps that jobs leave in their trees beside the newest
RANKS = (0, 1, 2)
NODES = ("a", "b", "c", "d")
RUN = Lineage("llama", world_size=len(RANKS))
IDENTITIES = {rank: Identity("default", "llama", str(rank)) for rank in RANKS}

ranks = st.sampled_from(RANKS)
names = st.sampled_from(NODES)


@dataclass(frozen=True)
class Record:
    """A complete checkpoint in the bucket: the snapshot of each rank that has its step, beside newer ones perhaps."""

    step: int
    parts: dict[str, Saved]


@dataclass
class Node:
    """What a machine has in its RAM, and what its worker knows."""

    name: str
    life: int = 1
    sequence: int = 0
    is_up: bool = True
    listed: dict[Identity, dict[int, Saved]] = field(default_factory=dict)
    resumed: dict[Identity, Resumption] = field(default_factory=dict)
    needed: dict[Identity, tuple[int, ...]] | None = None
    heard_at: float = 0.0  # what is needed
    clock: int = 0  # the highest epoch that it has heard of

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


@dataclass
class Rank:
    """A pod with its volume: where it is, how far its mount has come, and what its files are."""

    number: int
    node: str = ""  # where it is claimed
    epoch: int = 0
    verdict: Verdict | None = None  # its files are those of the step, and it has not joined
    branch_points: tuple[BranchPoint, ...] = ()  # what its files have gone through that have given way
    is_running: bool = False
    began: int | None = None  # the step from which it went on; None: from no files
    highest: int = 0  # of its snapshots
    line: list[Saved] = field(default_factory=list)  # all that has led to its files, the newest last

    @property
    def identity(self) -> Identity:
        return IDENTITIES[self.number]

    def has_passed(self, step: int | None) -> bool:
        """Whether its files have been those of a step since it began."""
        if step == self.began:
            return True
        begun = -1 if self.began is None else self.began
        return step is not None and step > begun and any(saved.step == step for saved in self.line)


class Jobs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.nodes = {name: Node(name) for name in NODES}
        self.ranks = {rank: Rank(rank) for rank in RANKS}
        self.bucket: dict[Identity, dict[int, Saved]] = {}
        self.records: list[Record] = []
        self.steps_of_restarts: dict[int, int | None] = {}
        self.lost_at = 0.0  # when content was lost
        self.every = 100  # steps the job saves
        self.wanted: int | None = None  # the step that a person has all go back to: nobody has yet
        self.asked_for: int | None = None  # by those who ask now: it may not be complete
        self.gone_back: dict[Identity, BranchPoint] = {}  # the last time that a person wanted it
        self.contents: dict[tuple[SnapshotId, int], int] = {}  # of a snapshot's step: one number, one content
        self.new_contents = count()
        self._begin_coordinator()
        self.time_passes(seconds=7)
        self.pods_are_begun_and_start(first=0, last=0)
        self.all_ranks_save(saves=2)

    def _begin_coordinator(self) -> None:
        self.directory = Directory(LEASE, self.now, int(self.now))
        self.restarts = Restarts(self.directory)

    # ---- what the nodes do ----

    @rule(seconds=st.integers(1, 8))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 0.9
            for node in self.nodes.values():
                self._report(node)
            self.directory.expire(self.now)

    def _report(self, node: Node) -> None:
        if not node.is_up:
            return
        claimed = {rank.identity: rank.epoch for rank in self.ranks.values() if rank.node == node.name}
        facts = LocalFacts(
            1,
            1,
            frozenset(claimed),
            {identity: tuple(sorted(numbers)) for identity, numbers in node.listed.items() if numbers},
            epochs=claimed,
            saved={identity: tuple(numbers.values()) for identity, numbers in node.listed.items() if numbers},
            resumed={
                identity: replace(one, is_over=not self._is_at_work(identity, node))
                for identity, one in node.resumed.items()
            },
        )
        addresses = (f"{node.name}:1", f"{node.name}:2")
        report = Report(node.name, f"{node.name}{node.life}", node.next(), *addresses, facts, clock=node.clock)
        self.directory.report(report, self.now)
        node.clock = max(node.clock, self.directory.clock(self.now))
        self.restarts.hear(report)
        if self.directory.is_settled(self.now):
            node.needed, node.heard_at = self.restarts.needed(node.name, self.now), self.now
        granted = self.directory.granted(node.name, self.now)
        for rank in self.ranks.values():
            if rank.node == node.name and granted.get(rank.identity, 0) > rank.epoch:
                rank.epoch = granted[rank.identity]

    def _is_at_work(self, identity: Identity, node: Node) -> bool:
        return any(
            rank.identity == identity and rank.node == node.name and rank.is_running for rank in self.ranks.values()
        )

    @rule(saves=st.integers(1, 2))
    def all_ranks_save(self, saves: int) -> None:
        for rank in (*RANKS,) * saves:
            self.a_rank_saves(rank=rank, is_unheard=False)
            self.a_copy_is_made(rank=rank, name=NODES[(rank + 1) % len(NODES)])

    @rule(rank=ranks, is_unheard=st.booleans())
    def a_rank_saves(self, rank: int, is_unheard: bool) -> None:
        """The next step, if no rank is too far behind."""
        one = self.ranks[rank]
        if not one.is_running or len([other for other in self.ranks.values() if other.is_running]) < len(RANKS):
            return
        done = {number: self._step_of(other) for number, other in self.ranks.items()}
        if done[rank] > min(done.values()) + 2 * self.every:
            return
        if not is_unheard:  # saving takes longer than telling
            self.time_passes(seconds=2)
        self._save(one, done[rank] + self.every - done[rank] % self.every, is_unheard=is_unheard)

    @rule(every=st.sampled_from([100, 200, 300]))
    def the_job_saves_more_often_or_less(self, every: int) -> None:
        """So that it may come past steps that it has gone back from without saving them again."""
        if all(rank.is_running for rank in self.ranks.values()):
            self.every = every

    @staticmethod
    def _step_of(rank: Rank) -> int:
        return (rank.line[-1].step or 0) if rank.line else 0

    def _save(self, rank: Rank, step: int, *, is_unheard: bool = False) -> None:
        rank.highest = max(rank.highest, number_before(rank.epoch)) + 1
        assert epoch_of(rank.highest) == rank.epoch, "an epoch below that of a snapshot"
        before = rank.line[-1].steps if rank.line else ()
        older = tuple(one for one in before if one < step)[-_KEPT_BESIDE:]
        saved = Saved(SnapshotId(rank.identity, rank.highest), RUN, step, 0, older=older)
        for one in saved.steps:
            # What was lost or given up, and is saved again, is another step of that number.
            known = self.contents[rank.line[-1].id, one] if one in before else next(self.new_contents)
            self.contents[saved.id, one] = known
        rank.line.append(saved)
        self.nodes[rank.node].listed.setdefault(rank.identity, {})[saved.id.number] = saved
        if not is_unheard:
            self._report(self.nodes[rank.node])

    @rule(rank=ranks, name=names)
    def a_copy_is_made(self, rank: int, name: str) -> None:
        newest = self._newest(self.ranks[rank])
        if newest is not None and self.nodes[name].is_up:
            held = self.nodes[name].listed.setdefault(newest.id.identity, {})
            if max(held, default=0) < newest.id.number:
                held[newest.id.number] = newest
                self._report(self.nodes[name])

    def _newest(self, rank: Rank) -> Saved | None:
        """The snapshot that its files are, as its node lists it."""
        if not rank.is_running or not rank.line:
            return None
        return self.nodes[rank.node].listed.get(rank.identity, {}).get(rank.line[-1].id.number)

    @rule(rank=ranks)
    def a_backup_is_made(self, rank: int) -> None:
        newest_saved = self._newest(self.ranks[rank])
        if newest_saved is None:
            return
        self.bucket.setdefault(newest_saved.id.identity, {})[newest_saved.id.number] = newest_saved
        whole = whole_steps({str(rank): self.bucket.get(IDENTITIES[rank], {}).values() for rank in RANKS}, len(RANKS))
        if not whole:
            return
        newest = Record(max(whole), whole[max(whole)])
        before = self.records[-1].parts if self.records else newest.parts
        if newest not in self.records[-1:] and all(
            part.id.number >= before[one].id.number for one, part in newest.parts.items()
        ):
            self.records.append(newest)

    @rule(name=names)
    def a_node_tidies_up(self, name: str) -> None:
        node = self.nodes[name]
        before = self._complete()
        for identity, numbers in node.listed.items():
            if node.needed is None:
                continue
            several = list(numbers.values())
            stays = stays_for_job(several, node.needed.get(identity, ()), node.resumed.get(identity))
            for number in plan_retention(dict(numbers), Keep(1), needed=stays):
                del numbers[number]
        # What was superseded may go; that it is the newest again, since another was lost, has to be heard first. That
        # a machine has died is known when its lease has ended, and a second later what is complete without it.
        if node.heard_at >= self.lost_at + LEASE + 2:
            assert self._complete() == before, "retention has lost the newest complete checkpoint"

    # ---- what goes wrong ----

    @rule(name=names)
    def a_machine_dies(self, name: str) -> None:
        node = self.nodes[name]
        if sum(other.is_up for other in self.nodes.values()) < 3:
            return
        self._report(node)
        node.is_up = False
        self.lost_at = self.now
        node.listed.clear()
        node.resumed.clear()
        for rank in self.ranks.values():
            if rank.node == name:
                self._end(rank)

    @rule(name=names)
    def a_worker_is_away_for_a_moment(self, name: str) -> None:
        """Its RAM and what it has mounted stay."""
        node = self.nodes[name]
        if node.is_up and not any(rank.node == name and not rank.is_running for rank in self.ranks.values()):
            node.is_up = False
            self.time_passes(seconds=7)
            self._come_up(node)

    @rule(name=names)
    def a_machine_comes_up(self, name: str) -> None:
        node = self.nodes[name]
        if not node.is_up:
            self._come_up(node)

    def _come_up(self, node: Node) -> None:
        node.is_up = True
        node.life += 1
        node.sequence = 0
        node.needed = None
        self._report(node)

    @rule()
    def the_coordinator_starts_again(self) -> None:
        """What a person wanted is told by nodes then; were they lost in the same moment, nobody would know."""
        if all(self._is_told(identity, point) for identity, point in self.gone_back.items()):
            self._begin_coordinator()

    def _is_told(self, identity: Identity, point: BranchPoint) -> bool:
        told = [node.resumed[identity] for node in self.nodes.values() if node.is_up and identity in node.resumed]
        return any(one.gives_up(point.rank + 1, point.epoch - 1) for one in told)

    # ---- restarts ----

    @rule(rank=ranks)
    def a_pod_ends(self, rank: int) -> None:
        self._release(self.ranks[rank])

    @rule()
    def all_pods_end(self) -> None:
        for rank in self.ranks.values():
            self._release(rank)

    def _release(self, rank: Rank) -> None:
        node = self.nodes.get(rank.node)
        if node is None or not node.is_up:
            return
        self._end(rank)
        self._report(node)

    @staticmethod
    def _end(rank: Rank) -> None:
        rank.node, rank.verdict, rank.is_running, rank.branch_points = "", None, False, ()

    @rule(first=st.integers(0, 3), last=st.integers(0, 3), at_once=st.booleans(), is_new=st.booleans())
    def pods_are_begun_and_start(self, first: int, last: int, at_once: bool = False, is_new: bool = True) -> None:
        """One after another, or all at once, up to some point in the middle perhaps."""
        moves = [(rank, move) for rank in RANKS for move in range(3)]
        if at_once:
            moves.sort(key=lambda one: one[1])
        for rank, move in moves[: len(moves) - last]:
            if move == 0:
                self.a_pod_is_begun(rank=rank, name=NODES[(rank + first) % len(NODES)])
            elif move == 1:
                self.a_rank_is_told_and_restored(rank=rank, is_lost=False)
            else:
                self.a_rank_joins(rank=rank, is_lost=False, is_new=is_new)

    @rule(first=ranks, at_once=st.booleans(), only=st.booleans(), last=st.integers(0, 2))
    def containers_are_started_again_in_place(self, first: int, at_once: bool, only: bool, last: int) -> None:
        """Their mounts and what is in them stay, and each claims and asks once more; of one, or of all in some order.

        Some do not come so far at once.
        """
        order = [first] if only else [(first + index) % len(RANKS) for index in range(len(RANKS))]
        for rank in order:
            self._begin_again(self.ranks[rank])
            if not at_once:
                self.a_rank_is_told_and_restored(rank=rank, is_lost=False)
                self.a_rank_joins(rank=rank, is_lost=False)
        if at_once:
            for rank in order[: len(order) - last]:
                self.a_rank_is_told_and_restored(rank=rank, is_lost=False)
            for rank in order:
                self.a_rank_joins(rank=rank, is_lost=False)

    @rule(first=st.integers(0, 3), last=st.integers(0, 3), back=st.integers(1, 3), is_new=st.booleans())
    def a_person_has_all_go_back(self, first: int, last: int, back: int, is_new: bool) -> None:
        """Nothing is lost: what they go back from is still there, and complete."""
        complete = self._complete()
        if complete is None:
            return
        self.all_pods_end()
        self.asked_for = complete - 100 * back
        self.pods_are_begun_and_start(first=first, last=last, is_new=is_new)
        self.asked_for = None

    def _begin_again(self, rank: Rank) -> None:
        node = self.nodes.get(rank.node)
        if node is None or not node.is_up or not rank.is_running:
            return
        with suppress(IdentityBusy, TierUnavailable):
            rank.epoch = self.directory.claim(
                rank.identity, node.name, f"{node.name}{node.life}", node.next(), self.now
            )
            node.clock = max(node.clock, rank.epoch)
            event("a container is started again in place")
            rank.is_running, rank.verdict = False, None
            self._report(node)

    @rule(rank=ranks, name=names)
    def a_pod_is_begun(self, rank: int, name: str) -> None:
        one, node = self.ranks[rank], self.nodes[name]
        if one.node or not node.is_up:
            return
        self._report(node)
        try:
            epoch = self.directory.claim(one.identity, name, f"{name}{node.life}", node.next(), self.now)
        except (IdentityBusy, TierUnavailable):
            return
        one.node, one.epoch = name, epoch
        node.clock = max(node.clock, epoch)

    @rule(rank=ranks, is_lost=st.booleans())
    def a_rank_is_told_and_restored(self, rank: int, is_lost: bool) -> None:
        one = self.ranks[rank]
        if not one.node or one.is_running or not self.nodes[one.node].is_up:
            return
        complete = self._complete()
        for node in self.nodes.values():
            self._report(node)
        try:
            verdict = self.restarts.ask(self._question(one), one.node, self.now)
        except TierRefused:
            assert complete is None, f"refused, but {complete} is complete"
            return
        except NotFound:
            assert self.asked_for is not None
            return
        except TierUnavailable:
            return
        if self.asked_for is not None:
            self.wanted = self.asked_for
        if is_lost:
            return  # the answer, or the mount is given up
        is_wanted = verdict.step is not None and verdict.step == self.wanted
        assert is_wanted or complete is None or (verdict.step or 0) >= complete, (
            f"{complete} is complete, not {verdict.step} only"
        )
        one.verdict = verdict
        if verdict.number and not self._has(one.identity, verdict.number):
            one.verdict = None  # it has gone meanwhile: it asks again
            return
        node = self.nodes[one.node]
        if (last := node.resumed.pop(one.identity, None)) is not None:
            one.branch_points = last.branch_points
        if verdict.number:
            found = next(held[verdict.number] for held in self._holders(one.identity) if verdict.number in held)
            node.listed.setdefault(one.identity, {})[verdict.number] = found

    def _question(self, rank: Rank) -> Question:
        backups = tuple(
            Backup(
                record.step,
                record.parts[str(rank.number)].id.number,
                min(part.id.epoch for part in record.parts.values()),
            )
            for record in self.records
        )
        return Question(rank.identity, RUN, backups, forced=self.asked_for)

    def _has(self, identity: Identity, number: int) -> bool:
        return any(number in listed for listed in self._holders(identity))

    def _holders(self, identity: Identity) -> Iterator[dict[int, Saved]]:
        yield self.bucket.get(identity, {})
        for node in self.nodes.values():
            if node.is_up:
                yield node.listed.get(identity, {})

    @rule(rank=ranks, goes_on=st.booleans())
    def a_part_is_found_to_be_damaged(self, rank: int, goes_on: bool) -> None:
        """Wherever it is; and then it is told that, and given something else."""
        one = self.ranks[rank]
        if one.verdict is None or not one.verdict.number or not self.nodes[one.node].is_up:
            return
        number = one.verdict.number
        self.lost_at = self.now
        for held in self._holders(one.identity):
            held.pop(number, None)
        self.records = [record for record in self.records if record.parts[str(rank)].id.number != number]
        one.verdict = None
        with suppress(TierUnavailable, TierRefused):
            self.restarts.ask(replace(self._question(one), lacking=(number,)), one.node, self.now)
        if goes_on:
            self.a_rank_is_told_and_restored(rank=rank, is_lost=False)
            self.a_rank_joins(rank=rank, is_lost=False)

    @rule(
        moves=st.integers(1, 8),
        at_once=st.booleans(),
        name=names,
        rank=ranks,
        what=st.sampled_from(["dies", "away", "coordinator", "damaged"]),
    )
    def something_happens_in_the_middle_of_a_restart(
        self, moves: int, at_once: bool, name: str, rank: int, what: str
    ) -> None:
        self.all_pods_end()
        self.pods_are_begun_and_start(first=0, last=9 - moves, at_once=at_once)
        if what == "dies":
            self.a_machine_dies(name=name)
        elif what == "away":
            self.a_worker_is_away_for_a_moment(name=name)
        elif what == "coordinator":
            self.the_coordinator_starts_again()
        else:
            self.a_part_is_found_to_be_damaged(rank=rank, goes_on=True)
        for other in RANKS:
            self.a_rank_joins(rank=other, is_lost=False)
        self.time_passes(seconds=7)
        self.pods_are_begun_and_start(first=1, last=0)

    @rule(rank=ranks, is_lost=st.booleans(), is_new=st.booleans())
    def a_rank_joins(self, rank: int, is_lost: bool, is_new: bool = True) -> None:
        one = self.ranks[rank]
        if one.verdict is None or not self.nodes[one.node].is_up:
            return
        verdict, node = one.verdict, self.nodes[one.node]
        assert verdict.restart, "a job whose trees name steps has all ranks agree"
        known = (*verdict.branch_points, *one.branch_points)
        resumption = Resumption(RUN.run, verdict.restart, verdict.step, one.epoch).after(known)
        try:
            self.restarts.join(one.identity, one.node, resumption, self.now)
        except TierUnavailable:
            one.verdict = None  # it is chosen again
            return
        if is_lost:
            return  # it tries again
        if verdict.step is not None:
            event("a rank goes on from a step")
            if one.line[-1].step != verdict.step:
                event("a rank goes back")
        if self.wanted is not None and verdict.step == self.wanted:
            self.gone_back[one.identity] = BranchPoint(one.epoch, verdict.step)
        if self.asked_for is None:
            self.wanted = None
        self._check_agreed(one, verdict)
        node.resumed[one.identity] = resumption
        self._restore(one, verdict, is_new=is_new)

    def _check_agreed(self, rank: Rank, verdict: Verdict) -> None:
        assert self.steps_of_restarts.setdefault(verdict.restart, verdict.step) == verdict.step
        for other in self.ranks.values():
            if other is not rank and other.is_running and self._holds_lease(other):
                assert other.has_passed(verdict.step), (
                    f"{rank.number} goes on from {verdict.step}, {other.number} began at {other.began} and is at "
                    f"{self._step_of(other)}"
                )

    def _holds_lease(self, rank: Rank) -> bool:
        owned = self.directory.owner(rank.identity, self.now)
        return owned is not None and owned.node == rank.node

    def _restore(self, rank: Rank, verdict: Verdict, *, is_new: bool) -> None:
        rank.is_running, rank.verdict, rank.began = True, None, verdict.step
        if verdict.step is None:
            rank.line = []
            return
        chosen = SnapshotId(rank.identity, verdict.number)
        own = [saved for saved in rank.line if verdict.step in saved.steps]
        wanted = {self.contents[saved.id, verdict.step] for saved in own}
        assert self.contents[chosen, verdict.step] in wanted, f"{chosen} has what was given up"
        is_as_it_was = rank.line[-1].id == chosen and rank.line[-1].step == verdict.step
        found = next((saved for saved in own if saved.id == chosen), own[-1])
        if found.step != verdict.step:
            event("a rank goes on from a step beside which a newer one stood")
        led = [
            (saved, tuple(step for step in saved.steps if step <= verdict.step))
            for saved in rank.line[: rank.line.index(found) + 1]
        ]
        rank.line = [replace(saved, step=steps[-1], older=steps[:-1]) for saved, steps in led if steps]
        if not is_as_it_was and is_new:  # else its pod ends before that, or the job saves first
            self._save(rank, verdict.step)  # going back is a new state

    # ---- what has to be ----

    def _complete(self) -> int | None:
        """The newest step that every rank has come through, of which every part is somewhere."""
        passed = {
            str(rank.number): {self.contents[saved.id, step]: step for saved in rank.line for step in saved.steps}
            for rank in self.ranks.values()
        }
        steps: list[set[int]] = []
        for one, own in passed.items():
            held = [saved for listed in self._in_ram(IDENTITIES[int(one)]) for saved in listed.values()]
            there = {self.contents[saved.id, step] for saved in held for step in saved.steps}
            steps.append({step for content, step in own.items() if content in there})
        backed_up = {
            record.step
            for record in self.records
            if all(self.contents[part.id, record.step] in passed[one] for one, part in record.parts.items())
        }
        return max(set.intersection(*steps) | backed_up, default=None)

    def _in_ram(self, identity: Identity) -> Iterator[dict[int, Saved]]:
        return (node.listed.get(identity, {}) for node in self.nodes.values() if node.is_up)

    def teardown(self) -> None:
        """In the end all nodes are there, and the whole job is started again."""
        for node in self.nodes.values():
            if not node.is_up:
                self._come_up(node)
        self.time_passes(seconds=8)
        self.all_pods_end()
        self.time_passes(seconds=20)
        complete, wanted = self._complete(), self.wanted
        for _ in range(3):
            for rank in self.ranks.values():
                self.a_pod_is_begun(rank=rank.number, name=NODES[rank.number])
                self.a_rank_is_told_and_restored(rank=rank.number, is_lost=False)
                self.a_rank_joins(rank=rank.number, is_lost=False)
        began = {rank.began if rank.is_running else "refused" for rank in self.ranks.values()}
        assert len(began) == 1, f"they go on from {began}"
        if complete is not None:
            assert began in ({complete}, {wanted}), f"{complete} is complete, and they go on from {began}"


TestJobs = Jobs.TestCase
# Examples of sixty steps take minutes to shrink: the long form does so, and a failure prints how to run it again.
_WITHOUT_SHRINKING = set(Phase) - {Phase.shrink, Phase.explain}
TestJobs.settings = settings(
    max_examples=examples(60), stateful_step_count=60, deadline=None, phases=_WITHOUT_SHRINKING
)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_whatever_happens_to_many_jobs() -> None:
    run_state_machine_as_test(Jobs, settings=settings(max_examples=3000, stateful_step_count=60, deadline=None))
