"""Whatever is lost, late or started again: no two ranks of a job go on from different steps, and no complete
checkpoint is lost while somebody has every part of it.

Ranks save one step after another, some of them ahead of others, and keep the last three in their trees; containers
are started again in place, people have jobs go back. The coordinator, retention and what is set aside are the real
ones; nodes are those of ``restarts_world.py``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from fuse_tier.completeness import whole_steps
from fuse_tier.errors import IdentityBusy, NotFound, TierRefused, TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.replicate.aside import stays_for_job
from fuse_tier.replicate.retention import Keep, plan_retention
from fuse_tier.restarts import BranchPoint, Verdict
from tests.coordinate.restarts_world import IDENTITIES, LEASE, NODES, RANKS, RUN, Rank, Record, World
from tests.harness.examples import examples

ranks = st.sampled_from(RANKS)
names = st.sampled_from(NODES)


class Jobs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.time_passes(seconds=7)
        self.pods_are_begun_and_start(first=0, last=0)
        self.all_ranks_save(saves=2)

    # ---- what the nodes do ----

    @rule(seconds=st.integers(1, 8))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.world.now += 0.9
            for node in self.world.nodes.values():
                self.world.report(node)
            self.world.directory.expire(self.world.now)

    @rule(saves=st.integers(1, 2))
    def all_ranks_save(self, saves: int) -> None:
        for rank in (*RANKS,) * saves:
            self.a_rank_saves(rank=rank, is_unheard=False)
            self.a_copy_is_made(rank=rank, name=NODES[(rank + 1) % len(NODES)])

    @rule(rank=ranks, is_unheard=st.booleans())
    def a_rank_saves(self, rank: int, is_unheard: bool) -> None:
        """The next step, if no rank is too far behind."""
        one = self.world.ranks[rank]
        if not one.is_running or len([other for other in self.world.ranks.values() if other.is_running]) < len(RANKS):
            return
        done = {number: self.world.step_of(other) for number, other in self.world.ranks.items()}
        if done[rank] > min(done.values()) + 2 * self.world.every:
            return
        if not is_unheard:  # saving takes longer than telling
            self.time_passes(seconds=2)
        self.world.save(one, done[rank] + self.world.every - done[rank] % self.world.every, is_unheard=is_unheard)

    @rule(every=st.sampled_from([100, 200, 300]))
    def the_job_saves_more_often_or_less(self, every: int) -> None:
        """So that it may come past steps that it has gone back from without saving them again."""
        if all(rank.is_running for rank in self.world.ranks.values()):
            self.world.every = every

    @rule(rank=ranks, name=names)
    def a_copy_is_made(self, rank: int, name: str) -> None:
        newest = self.world.newest(self.world.ranks[rank])
        if newest is not None and self.world.nodes[name].is_up:
            held = self.world.nodes[name].listed.setdefault(newest.id.identity, {})
            if max(held, default=0) < newest.id.number:
                held[newest.id.number] = newest
                self.world.report(self.world.nodes[name])

    @rule(rank=ranks)
    def a_backup_is_made(self, rank: int) -> None:
        saved = self.world.newest(self.world.ranks[rank])
        if saved is None:
            return
        self.world.bucket.setdefault(saved.id.identity, {})[saved.id.number] = saved
        whole = whole_steps(
            {str(rank): self.world.bucket.get(IDENTITIES[rank], {}).values() for rank in RANKS}, len(RANKS)
        )
        if not whole:
            return
        newest = Record(max(whole), whole[max(whole)])
        before = self.world.records[-1].parts if self.world.records else newest.parts
        if newest not in self.world.records[-1:] and all(
            part.id.number >= before[one].id.number for one, part in newest.parts.items()
        ):
            self.world.records.append(newest)

    @rule(name=names)
    def a_node_tidies_up(self, name: str) -> None:
        node = self.world.nodes[name]
        before = self.world.complete()
        for identity, numbers in node.listed.items():
            if node.needed is None:
                continue
            several = list(numbers.values())
            stays = stays_for_job(several, node.needed.get(identity, ()), node.resumed.get(identity))
            for number in plan_retention(dict(numbers), Keep(1), needed=stays):
                del numbers[number]
        # What was superseded may go; that it is the newest again, since another was lost, has to be heard first. That
        # a machine has died is known when its lease has ended, and a second later what is complete without it.
        if node.heard_at >= self.world.lost_at + LEASE + 2:
            assert self.world.complete() == before, "retention has lost the newest complete checkpoint"

    # ---- what goes wrong ----

    @rule(name=names)
    def a_machine_dies(self, name: str) -> None:
        node = self.world.nodes[name]
        if sum(other.is_up for other in self.world.nodes.values()) < 3:
            return
        self.world.report(node)
        node.is_up = False
        self.world.lost_at = self.world.now
        node.listed.clear()
        node.resumed.clear()
        for rank in self.world.ranks.values():
            if rank.node == name:
                self.world.end(rank)

    @rule(name=names)
    def a_worker_is_away_for_a_moment(self, name: str) -> None:
        """Its RAM and what it has mounted stay."""
        node = self.world.nodes[name]
        if node.is_up and not any(rank.node == name and not rank.is_running for rank in self.world.ranks.values()):
            node.is_up = False
            self.time_passes(seconds=7)
            self.world.come_up(node)

    @rule(name=names)
    def a_machine_comes_up(self, name: str) -> None:
        node = self.world.nodes[name]
        if not node.is_up:
            self.world.come_up(node)

    @rule()
    def the_coordinator_starts_again(self) -> None:
        """What a person wanted is told by nodes then; were they lost in the same moment, nobody would know."""
        if all(self.world.is_told(identity, point) for identity, point in self.world.gone_back.items()):
            self.world.begin_coordinator()

    # ---- restarts ----

    @rule(rank=ranks)
    def a_pod_ends(self, rank: int) -> None:
        self.world.release(self.world.ranks[rank])

    @rule()
    def all_pods_end(self) -> None:
        for rank in self.world.ranks.values():
            self.world.release(rank)

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
            self.world.begin_again(self.world.ranks[rank])
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
        complete = self.world.complete()
        if complete is None:
            return
        if self.world.has_backup_of_another_life(complete - 100 * back):
            return  # which counts when it is named: test_restart_faults.py
        self.all_pods_end()
        self.world.asked_for = complete - 100 * back
        self.pods_are_begun_and_start(first=first, last=last, is_new=is_new)
        self.world.asked_for = None

    @rule(rank=ranks, name=names)
    def a_pod_is_begun(self, rank: int, name: str) -> None:
        one, node = self.world.ranks[rank], self.world.nodes[name]
        if one.node or not node.is_up:
            return
        self.world.report(node)
        try:
            epoch = self.world.directory.claim(one.identity, name, f"{name}{node.life}", node.next(), self.world.now)
        except (IdentityBusy, TierUnavailable):
            return
        one.node, one.epoch = name, epoch
        node.clock = max(node.clock, epoch)

    @rule(rank=ranks, is_lost=st.booleans())
    def a_rank_is_told_and_restored(self, rank: int, is_lost: bool) -> None:
        one = self.world.ranks[rank]
        if not one.node or one.is_running or not self.world.nodes[one.node].is_up:
            return
        complete = self.world.complete()
        for node in self.world.nodes.values():
            self.world.report(node)
        try:
            verdict = self.world.restarts.ask(self.world.question(one), one.node, self.world.now)
        except TierRefused:
            assert complete is None, f"refused, but {complete} is complete"
            return
        except NotFound:
            assert self.world.asked_for is not None
            return
        except TierUnavailable:
            return
        if self.world.asked_for is not None:
            self.world.wanted = self.world.asked_for
        if is_lost:
            return  # the answer, or the mount is given up
        is_wanted = verdict.step is not None and verdict.step == self.world.wanted
        assert is_wanted or complete is None or (verdict.step or 0) >= complete, (
            f"{complete} is complete, not {verdict.step} only"
        )
        one.verdict = verdict
        if verdict.number and not self.world.has(one.identity, verdict.number):
            one.verdict = None  # it has gone meanwhile: it asks again
            return
        node = self.world.nodes[one.node]
        if (last := node.resumed.pop(one.identity, None)) is not None:
            one.branch_points = last.branch_points
        if verdict.number:
            found = next(held[verdict.number] for held in self.world.holders(one.identity) if verdict.number in held)
            node.listed.setdefault(one.identity, {})[verdict.number] = found

    @rule(rank=ranks, goes_on=st.booleans())
    def a_part_is_found_to_be_damaged(self, rank: int, goes_on: bool) -> None:
        """Wherever it is; and then it is told that, and given something else."""
        one = self.world.ranks[rank]
        if one.verdict is None or not one.verdict.number or not self.world.nodes[one.node].is_up:
            return
        number = one.verdict.number
        self.world.lost_at = self.world.now
        for held in self.world.holders(one.identity):
            held.pop(number, None)
        self.world.records = [record for record in self.world.records if record.parts[str(rank)].id.number != number]
        one.verdict = None
        with suppress(TierUnavailable, TierRefused):
            self.world.restarts.ask(replace(self.world.question(one), lacking=(number,)), one.node, self.world.now)
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
        one = self.world.ranks[rank]
        if one.verdict is None or not self.world.nodes[one.node].is_up:
            return
        verdict, node = one.verdict, self.world.nodes[one.node]
        assert verdict.restart, "a job whose trees name steps has all ranks agree"
        resumption = verdict.followed(RUN.run, one.epoch, one.branch_points)
        try:
            self.world.restarts.join(one.identity, one.node, resumption, self.world.now)
        except TierUnavailable:
            one.verdict = None  # it is chosen again
            return
        if is_lost:
            return  # it tries again
        if verdict.step is not None:
            event("a rank goes on from a step")
            if one.line[-1].step != verdict.step:
                event("a rank goes back")
        if self.world.wanted is not None and verdict.step == self.world.wanted:
            self.world.gone_back[one.identity] = BranchPoint(one.epoch, verdict.step)
        if self.world.asked_for is None:
            self.world.wanted = None
        self._check_agreed(one, verdict)
        node.resumed[one.identity] = resumption
        self._restore(one, verdict, is_new=is_new)

    def _check_agreed(self, rank: Rank, verdict: Verdict) -> None:
        assert self.world.steps_of_restarts.setdefault(verdict.restart, verdict.step) == verdict.step
        for other in self.world.ranks.values():
            if other is not rank and other.is_running and self.world.holds_lease(other):
                assert other.has_passed(verdict.step), (
                    f"{rank.number} goes on from {verdict.step}, {other.number} began at {other.began} and is at "
                    f"{self.world.step_of(other)}"
                )

    def _restore(self, rank: Rank, verdict: Verdict, *, is_new: bool) -> None:
        rank.is_running, rank.verdict, rank.began = True, None, verdict.step
        if verdict.step is None:
            rank.line = []
            return
        chosen = SnapshotId(rank.identity, verdict.number)
        own = [saved for saved in rank.line if verdict.step in saved.steps]
        wanted = {self.world.contents[saved.id, verdict.step] for saved in own}
        assert self.world.contents[chosen, verdict.step] in wanted, f"{chosen} has what was given up"
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
            self.world.save(rank, verdict.step)  # going back is a new state

    # ---- what has to be ----

    def teardown(self) -> None:
        """In the end all nodes are there, and the whole job is started again."""
        for node in self.world.nodes.values():
            if not node.is_up:
                self.world.come_up(node)
        self.time_passes(seconds=8)
        self.all_pods_end()
        self.time_passes(seconds=20)
        complete, wanted = self.world.complete(), self.world.wanted
        for _ in range(3):
            for rank in self.world.ranks.values():
                self.a_pod_is_begun(rank=rank.number, name=NODES[rank.number])
                self.a_rank_is_told_and_restored(rank=rank.number, is_lost=False)
                self.a_rank_joins(rank=rank.number, is_lost=False)
        began = {rank.began if rank.is_running else "refused" for rank in self.world.ranks.values()}
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
