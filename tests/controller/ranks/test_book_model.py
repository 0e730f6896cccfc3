"""Whatever happens to a job's pods, its nodes and the ranks server: who runs has a rank of its own, and keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.ranks.book import RankBook, Report
from controller.ranks.objects import Name, Node, Owner, Pod, read_pod
from controller.ranks.shape import Shape
from csi.services import DRIVER_NAME
from fuse_tier.errors import FuseTierError
from tests.controller.ranks.objects import jobset_pod
from tests.harness.examples import examples

JOB = Name("ml", "llama")


@dataclass
class Machine:
    """A node: the rank that it keeps beside the files of that rank."""

    pool: int
    shape: str = ""
    rank: int = 0


class Ranks(RuleBasedStateMachine):
    """Each pool has a node more than a slice has workers; the pods of a slice go to the nodes of one pool."""

    @initialize(slices=st.integers(1, 3), workers=st.integers(1, 3))
    def begin(self, slices: int, workers: int) -> None:
        self.shape = Shape(slices, workers)
        self.machines = {
            f"node-{pool}-{number}": Machine(pool) for pool in range(slices) for number in range(workers + 1)
        }
        self.pools = list(range(slices))  # by job index
        self.attempt = self.created = 0
        self.pods: dict[str, Pod] = {}
        self.told: dict[str, int] = {}  # ranks that pods were told
        self.book = RankBook()
        self.tell_everything()

    def tell_everything(self) -> None:
        for name, machine in self.machines.items():
            self.book.see_node(name, Node(f"pool-{machine.pool}", name))
        for number in range(self.shape.slices):
            self.book.see_workers(Owner("Job", Name("ml", f"llama-workers-{number}")), self.shape.workers)
        for pod in self.pods.values():
            self.book.see_pod(pod)

    def places(self) -> dict[tuple[int, int], Pod]:
        return {(place.slice, place.worker): pod for pod in self.pods.values() if (place := pod.place)}

    @precondition(lambda self: len(self.pods) < len(self.shape.ranks))
    @rule(data=st.data())
    def start_a_pod(self, data: st.DataObject) -> None:
        free = [divmod(rank, self.shape.workers) for rank in self.shape.ranks]
        number, worker = data.draw(st.sampled_from([place for place in free if place not in self.places()]))
        taken = {pod.node for pod in self.pods.values()}
        there = [name for name, one in self.machines.items() if one.pool == self.pools[number] and name not in taken]
        self.created += 1
        found = jobset_pod(
            "llama",
            self.shape.slices,
            number,
            worker,
            attempt=self.attempt,
            node=data.draw(st.sampled_from(there)),
            uid=f"pod-{self.created}",
            created=f"{self.created:06}",
        )
        pod = read_pod(found, DRIVER_NAME)
        assert pod is not None
        self.pods[pod.uid] = pod
        self.book.see_pod(pod)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        pod = self.pods[uid]
        machine = self.machines[pod.node]
        report = Report(pod.node, uid, uid in self.told, str(JOB), machine.shape, machine.rank)
        answer = self.book.update(report)
        if answer.rank is None:
            assert uid not in self.told
            return
        assert self.told.setdefault(uid, answer.rank) == answer.rank
        machine.shape, machine.rank = str(answer.shape), answer.rank

    @rule()
    def everybody_asks(self) -> None:
        """Twice, and all are there: all have ranks, and who had one keeps it."""
        before = {uid: self.machines[pod.node] for uid, pod in self.pods.items()}
        kept = {uid: one.rank for uid, one in before.items() if one.shape == str(self.shape)}
        for _ in range(2):
            for uid, pod in self.pods.items():
                machine = self.machines[pod.node]
                report = Report(pod.node, uid, uid in self.told, str(JOB), machine.shape, machine.rank)
                answer = self.book.update(report)
                if answer.rank is not None:
                    assert self.told.setdefault(uid, answer.rank) == answer.rank
        for uid in self.pods:
            if uid in self.told:
                self.machines[self.pods[uid].node].shape = str(self.shape)
                self.machines[self.pods[uid].node].rank = self.told[uid]
        if len(self.pods) == len(self.shape.ranks):
            assert self.told.keys() >= self.pods.keys()
            slices = {uid: self.shape.slice_of(rank) for uid, rank in kept.items()}
            if len(set(kept.values())) == len(kept) and len(
                {(before[uid].pool, number) for uid, number in slices.items()}
            ) == len(set(slices.values())) == len({before[uid].pool for uid in slices}):
                assert {uid: self.told[uid] for uid in kept} == kept

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def a_pod_goes(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        del self.pods[uid]
        self.told.pop(uid, None)
        self.book.lose_pod(uid)

    @rule(data=st.data())
    def a_node_is_replaced(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.machines)))
        for uid in [uid for uid, pod in self.pods.items() if pod.node == name]:
            del self.pods[uid]
            self.told.pop(uid, None)
            self.book.lose_pod(uid)
        self.machines[name] = Machine(self.machines[name].pool)

    @rule(rng=st.randoms(use_true_random=False), stay=st.booleans())
    def the_job_is_restarted(self, rng: object, stay: bool) -> None:
        """All pods are made anew, on whichever pools; the old ones go now, or as soon as the new ones come."""
        self.attempt += 1
        rng.shuffle(self.pools)  # type: ignore[attr-defined]
        for uid in self.pods:
            if not stay:
                self.book.lose_pod(uid)
        self.pods.clear()
        self.told.clear()

    @rule()
    def the_server_is_started_again(self) -> None:
        self.book = RankBook()
        self.tell_everything()

    @rule(uid=st.sampled_from(["nobody", "pod-1", "pod-2"]))
    def a_node_speaks_of_a_pod_that_it_has_not(self, uid: str) -> None:
        with pytest.raises(FuseTierError):
            self.book.update(Report("elsewhere", uid, is_assigned=True, job=str(JOB), shape=str(self.shape), rank=0))

    @invariant()
    def no_rank_is_given_twice(self) -> None:
        if hasattr(self, "told"):
            running = [rank for uid, rank in self.told.items() if uid in self.pods]
            assert len(running) == len(set(running))


TestRanks = Ranks.TestCase
TestRanks.settings = settings(max_examples=examples(60), stateful_step_count=40)
