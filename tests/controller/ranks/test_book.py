from __future__ import annotations

from typing import Any

import pytest

from controller.ranks.book import Answer, RankBook, Report
from controller.ranks.objects import Name, Owner, read_node, read_pod
from controller.ranks.shape import Shape
from csi.services import DRIVER_NAME
from fuse_tier.checkpoints import Job
from fuse_tier.errors import InvalidRequest, NotFound, TierRefused, TierUnavailable
from fuse_tier.restarts import Wish
from tests.controller.ranks.objects import jobset_pod, node, pod

JOB = Name("ml", "llama")


def workers_of(number: int) -> Owner:
    return Owner("Job", Name("ml", f"llama-workers-{number}"))


class Cluster:
    """A JobSet's pods, one to a node, as the API server would tell of them."""

    def __init__(self, slices: int = 2, workers: int = 2) -> None:
        self.book = RankBook()
        self.slices, self.workers = slices, workers
        self.nodes: dict[str, str] = {}
        for number in range(slices):
            self.book.see_workers(workers_of(number), workers)

    def see(self, found: dict[str, Any]) -> str:
        """Gives the pod's uid."""
        read = read_pod(found, DRIVER_NAME)
        assert read is not None
        self.book.see_pod(read)
        self.nodes[read.uid] = read.node
        return read.uid

    def start(self, number: int, worker: int, on: str = "", *, attempt: int = 0, **others: Any) -> str:
        where = on or f"node-{number}-{worker}"
        self.book.see_node(where, read_node(node(f"10.0.{number}.{worker}", f"pool-{number}")))
        return self.see(
            jobset_pod(
                "llama",
                self.slices,
                number,
                worker,
                attempt=attempt,
                node=where,
                created=f"2026-01-0{attempt + 1}",
                **others,
            )
        )

    def ask(self, uid: str, rank: int | None = None, *, assigned: bool = False, shape: str = "") -> Answer:
        shown = shape or f"{self.slices}x{self.workers}"
        node_of = self.nodes[uid]
        if rank is None:
            return self.book.update(Report(node_of, uid))
        return self.book.update(Report(node_of, uid, assigned, str(JOB), shown, rank))

    def start_all(self, attempt: int = 0) -> list[str]:
        return [
            self.start(*divmod(rank, self.workers), attempt=attempt) for rank in range(self.slices * self.workers)
        ]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_no_rank_is_told_before_all_are_known(cluster: Cluster) -> None:
    uids = cluster.start_all()
    for count, uid in enumerate(uids[:-1], 1):
        answer = cluster.ask(uid)
        assert answer.rank is None
        assert f"node-{count // 2}-{count % 2}" in answer.waits_for
    assert cluster.ask(uids[-1]) == Answer(JOB, Shape(2, 2), 3, "10.0.0.0")
    assert [cluster.ask(uid).rank for uid in uids] == [0, 1, 2, 3]


def test_it_says_how_many_pods_are_missing(cluster: Cluster) -> None:
    uid = cluster.start(0, 0)
    assert cluster.ask(uid).waits_for == "1 of 4 pods are there"


def test_it_says_which_pods_are_not_scheduled(cluster: Cluster) -> None:
    uids = [cluster.start(0, 0), cluster.start(0, 1), cluster.start(1, 0)]
    cluster.see(jobset_pod("llama", 2, 1, 1))
    for uid in uids:
        waits_for = cluster.ask(uid).waits_for
    assert waits_for == "ml/llama-workers-1-1-0 (not scheduled)"


def test_after_a_restart_nodes_that_survived_keep_their_ranks(cluster: Cluster) -> None:
    for uid in cluster.start_all():
        cluster.ask(uid)
    # Slices change places, and worker 0 of the first had to go to another node.
    again = [cluster.start(0, 0, "node-1-0", attempt=1), cluster.start(0, 1, "node-1-1", attempt=1)]
    again += [cluster.start(1, 0, "node-new", attempt=1), cluster.start(1, 1, "node-0-1", attempt=1)]
    for name, pool in (("node-1-0", 1), ("node-1-1", 1), ("node-new", 0), ("node-0-1", 0)):
        cluster.book.see_node(name, read_node(node(f"of-{name}", f"pool-{pool}")))
    for uid, rank in zip(again, (2, 3, None, 1), strict=True):
        cluster.ask(uid, rank)
    answers = [cluster.ask(uid, rank) for uid, rank in zip(again, (2, 3, None, 1), strict=True)]
    assert [answer.rank for answer in answers] == [2, 3, 0, 1]
    assert {answer.first_address for answer in answers} == {"of-node-new"}


def test_a_report_of_an_earlier_attempt_is_refused(cluster: Cluster) -> None:
    old = cluster.start_all()
    cluster.start(0, 0, attempt=1)
    with pytest.raises(TierRefused, match="is of an earlier life of ml/llama"):
        cluster.ask(old[1])


def test_a_job_that_is_made_anew_begins_at_attempt_zero(cluster: Cluster) -> None:
    cluster.start(0, 0, attempt=3)
    labels = {"jobset.sigs.k8s.io/jobset-uid": "another"}
    found = jobset_pod("llama", 2, 0, 0, node="n", created="2026-02-01")
    found["metadata"]["labels"] |= labels
    found["metadata"]["uid"] = "new"
    assert cluster.ask(cluster.see(found)).waits_for == "1 of 4 pods are there"


def test_a_replacement_gets_the_rank_that_was_lost_and_nobody_else_another(cluster: Cluster) -> None:
    uids = cluster.start_all()
    for uid in uids * 2:
        cluster.ask(uid)
    cluster.see(jobset_pod("llama", 2, 0, 1, node="node-0-1", deleted=True))
    replacement = cluster.start(0, 1, "node-new", uid="again")
    assert cluster.ask(replacement).rank == 1
    assert [cluster.ask(uid).rank for uid in (uids[0], *uids[2:])] == [0, 2, 3]


def test_a_server_that_starts_again_hears_from_nodes_what_it_had_told_them(cluster: Cluster) -> None:
    uids = cluster.start_all()
    assert cluster.ask(uids[0], 2, assigned=True).rank == 2
    assert cluster.ask(uids[1], 3, assigned=True).rank == 3
    assert cluster.ask(uids[2], 0).rank is None
    assert cluster.ask(uids[3]).rank == 1
    assert cluster.ask(uids[2], 0).rank == 0


def test_two_pods_that_claim_one_rank_do_not_both_get_it(cluster: Cluster) -> None:
    uids = cluster.start_all()
    assert cluster.ask(uids[0], 1, assigned=True).rank == 1
    for uid in uids[1:]:
        cluster.ask(uid, 1, assigned=True)
    assert sorted(cluster.ask(uid).rank or 0 for uid in uids) == [0, 1, 2, 3]


@pytest.mark.parametrize(("rank", "shape"), [(4, "2x2"), (-1, "2x2"), (3, "1x4"), (3, "nonsense")])
def test_a_rank_of_another_shape_or_none_that_there_is_counts_for_nothing(
    cluster: Cluster, rank: int, shape: str
) -> None:
    uids = cluster.start_all()
    for _ in range(2):
        given = [cluster.ask(uid, rank, shape=shape).rank for uid in uids]
    assert given == [0, 1, 2, 3]


def test_a_job_that_is_resized_begins_anew(cluster: Cluster) -> None:
    uids = cluster.start_all()
    for uid in uids * 2:
        cluster.ask(uid)
    for number in range(2):
        cluster.book.see_workers(workers_of(number), 3)
    assert cluster.ask(uids[0], 0, assigned=True).waits_for == "4 of 6 pods are there"


def test_pods_that_run_keep_ranks_that_no_order_of_pools_allows(cluster: Cluster) -> None:
    uids = cluster.start_all()
    cluster.ask(uids[0], 0, assigned=True)
    cluster.ask(uids[1], 2, assigned=True)  # in one pool
    cluster.ask(uids[2])
    cluster.ask(uids[3])
    assert [cluster.ask(uid).rank for uid in uids] == [0, 2, 1, 3]


def test_what_it_knows_of_a_job_goes_with_its_last_pod(cluster: Cluster) -> None:
    for uid in cluster.start_all():
        cluster.ask(uid)
        cluster.book.lose_pod(uid)
    assert cluster.ask(cluster.start(0, 0)).waits_for == "1 of 4 pods are there"


def test_a_pod_that_ended_gives_its_rank_back(cluster: Cluster) -> None:
    uids = cluster.start_all()
    for uid in uids * 2:
        cluster.ask(uid)
    cluster.book.forget(Report("node-0-0", uids[0]))
    with pytest.raises(TierRefused):
        cluster.ask(uids[0])


def test_a_pod_that_is_not_known_may_be_soon(cluster: Cluster) -> None:
    with pytest.raises(TierUnavailable, match="pod x on node n is not known from the API server yet"):
        cluster.book.update(Report("n", "x"))


def test_a_pod_whose_job_is_not_known_may_be_soon() -> None:
    cluster = Cluster(slices=0)
    cluster.slices = 2
    with pytest.raises(TierUnavailable, match="how many workers Job ml/llama-workers-0 has is not known"):
        cluster.ask(cluster.start(0, 0))


def test_a_node_speaks_of_its_own_pods_only(cluster: Cluster) -> None:
    uid = cluster.start(0, 0)
    with pytest.raises(InvalidRequest, match="is on node node-0-0, says the API server, and not on node other"):
        cluster.book.update(Report("other", uid))
    unscheduled = cluster.see(jobset_pod("llama", 2, 0, 1))
    with pytest.raises(InvalidRequest, match="not scheduled yet"):
        cluster.book.update(Report("other", unscheduled))


def test_a_pod_of_no_job_is_told_what_it_can_do(cluster: Cluster) -> None:
    uid = cluster.see(pod("alone", node="n"))
    with pytest.raises(NotFound, match="name `workload` and `replica` in its volumeAttributes"):
        cluster.book.update(Report("n", uid))


def test_a_job_that_is_suspended_has_the_same_ranks_when_it_goes_on(cluster: Cluster) -> None:
    before = cluster.start_all()
    for _ in range(2):
        ranks = {cluster.nodes[uid]: cluster.ask(uid).rank for uid in before}
    for uid in before:
        cluster.book.lose_pod(uid)
    # Of the same attempt; the scheduler has put workers of a slice the other way round.
    after = [
        cluster.start(number, worker, f"node-{number}-{1 - worker}", uid=f"again-{number}-{worker}")
        for number in range(2)
        for worker in range(2)
    ]
    for _ in range(2):
        told = {cluster.nodes[uid]: cluster.ask(uid, ranks[cluster.nodes[uid]]).rank for uid in after}
    assert told == ranks, "whose files are in a node's RAM stays there"


def test_a_jobset_that_is_deleted_leaves_nothing_and_one_of_its_name_begins_anew(cluster: Cluster) -> None:
    before = cluster.start_all(attempt=3)
    for _ in range(2):
        for uid in before:
            cluster.ask(uid)
    for uid in before:
        cluster.book.lose_pod(uid)
    assert cluster.book.origin_of(JOB) is None
    with pytest.raises(TierUnavailable):
        cluster.ask(before[0])
    again = [cluster.start(*divmod(rank, 2), uid=f"again-{rank}") for rank in range(4)]
    for _ in range(2):
        told = [cluster.ask(uid).rank for uid in again]
    assert told == [0, 1, 2, 3], "at attempt 0, whatever the one before had come to"


def test_what_is_written_on_a_jobset_counts_for_its_pods(cluster: Cluster) -> None:
    cluster.start_all()
    job = Job("ml", "llama")
    assert cluster.book.wish_of(job) is None
    cluster.book.see_wish("Job", JOB, Wish("step 1", 1))
    assert cluster.book.wish_of(job) is None, "that is another object of the name"
    cluster.book.see_wish("JobSet", JOB, Wish("step 100", 100))
    assert cluster.book.wish_of(job) == Wish("step 100", 100)
    cluster.book.see_wish("JobSet", JOB, "restore-step: 'x' is no step")
    with pytest.raises(InvalidRequest, match="ml/llama: restore-step: 'x' is no step"):
        cluster.book.wish_of(job)
    cluster.book.see_wish("JobSet", JOB, None)
    assert cluster.book.wish_of(job) is None
    assert cluster.book.wish_of(Job("ml", "nobody")) is None


def test_a_container_that_is_started_again_in_its_place_is_seen_and_its_pod_keeps_its_rank(cluster: Cluster) -> None:
    pods = cluster.start_all()
    for _ in range(2):
        ranks = [cluster.ask(uid).rank for uid in pods]
    seen: list[tuple[Name, str]] = []
    cluster.book.restarted = lambda job, pod: seen.append((job, pod.uid))
    cluster.start(0, 1, restarts=1)
    cluster.start(0, 1, restarts=1)  # something else of the pod has changed
    cluster.start(1, 0)
    assert seen == [(JOB, pods[1])]
    assert [cluster.ask(uid).rank for uid in pods] == ranks
