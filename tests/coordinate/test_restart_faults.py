"""What happens to a restart in the middle of which something is lost, lies, or begins once more: one case each.

The coordinator is the real one; nodes are what it hears of them. Whatever else may come together is in the model of
restarts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.restarts import Restarts
from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import number_before
from fuse_tier.errors import NotFound, TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import LocalFacts, Report
from fuse_tier.restarts import Backup, Question, Resumption, Verdict, Wish

LEASE = 5.0
JOB = Job("default", "llama")
RUN = Lineage("llama", world_size=3)
RANKS = (0, 1, 2)


@dataclass
class Node:
    name: str
    listed: set[tuple[int, int]] = field(default_factory=set)  # rank and step; the snapshot has the step's number
    mounted: dict[int, int] = field(default_factory=dict)  # rank and epoch
    resumed: dict[int, Resumption] = field(default_factory=dict)
    at_work: set[int] = field(default_factory=set)
    saved_since: list[tuple[int, int, int]] = field(default_factory=list)  # rank, step and epoch
    sequence: int = 0
    is_up: bool = True

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


class Cluster:
    """Rank N is mounted on node N; ``x`` and ``y`` are others."""

    def __init__(self, groups: int = 1) -> None:
        """Ranks are declared to hold the same state in so many groups."""
        self.groups = groups
        self.now = 0.0
        self.directory = Directory(LEASE, self.now, epoch=1000)
        self.wish: Wish | None = None
        self.restarts = Restarts(self.directory, lambda _: self.wish)
        self.nodes = {name: Node(name) for name in ("0", "1", "2", "x", "y")}
        self.wait(LEASE + 1)

    def has(self, name: str, *listed: tuple[int, int]) -> None:
        self.nodes[name].listed |= set(listed)
        self.say(self.nodes[name])

    def say(self, node: Node) -> None:
        saved: dict[int, list[Saved]] = {}
        for rank, step in sorted(node.listed):
            one = SnapshotId(JOB.identity(str(rank)), number_before(900) + step)
            saved.setdefault(rank, []).append(Saved(one, RUN.sharing(self.groups, rank), step, 0))
        for rank, step, epoch in node.saved_since:
            one = SnapshotId(JOB.identity(str(rank)), number_before(epoch) + step)
            saved.setdefault(rank, []).append(Saved(one, RUN.sharing(self.groups, rank), step, 0))
        facts = LocalFacts(
            1,
            1,
            frozenset(JOB.identity(str(rank)) for rank in node.mounted),
            {JOB.identity(str(rank)): tuple(one.id.number for one in several) for rank, several in saved.items()},
            epochs={JOB.identity(str(rank)): epoch for rank, epoch in node.mounted.items()},
            saved={JOB.identity(str(rank)): tuple(several) for rank, several in saved.items()},
            resumed={
                JOB.identity(str(rank)): replace(one, is_over=rank not in node.at_work)
                for rank, one in node.resumed.items()
            },
        )
        report = Report(node.name, f"{node.name}1", node.next(), f"{node.name}:1", f"{node.name}:2", facts)
        self.directory.report(report, self.now)
        self.restarts.hear(report)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            for node in self.nodes.values():
                if node.is_up:
                    self.say(node)
            self.directory.expire(self.now)

    def dies(self, name: str) -> None:
        """For longer than it is waited for."""
        self.nodes[name].is_up = False
        self.wait(LEASE + Deadline.RETURN + 1)

    def start(self, rank: int) -> None:
        """The rank's pod is made: its node claims the volume."""
        node = self.nodes[str(rank)]
        identity = JOB.identity(str(rank))
        node.mounted[rank] = self.directory.claim(identity, node.name, f"{node.name}1", node.next(), self.now)
        self.say(node)

    def end(self, rank: int) -> None:
        """Its mount ends; what its files went on from stands beside them, and is told on."""
        node = self.nodes[str(rank)]
        node.mounted.pop(rank, None)
        node.at_work.discard(rank)
        self.say(node)

    def ask(
        self,
        rank: int,
        *,
        lacking: tuple[int, ...] = (),
        backups: tuple[Backup, ...] = (),
        forced: int | None = None,
    ) -> Verdict:
        numbers = tuple(number_before(900) + step for step in lacking)
        question = Question(JOB.identity(str(rank)), RUN, backups, lacking=numbers, forced=forced)
        return self.restarts.ask(question, str(rank), self.now)

    def join(self, rank: int, verdict: Verdict) -> None:
        node = self.nodes[str(rank)]
        one = verdict.followed(RUN.run, node.mounted[rank])
        self.restarts.join(JOB.identity(str(rank)), node.name, one, self.now)
        node.resumed[rank] = one
        node.at_work.add(rank)
        self.say(node)

    def goes_on(self, rank: int, step: int) -> None:
        """It has saved a step since, under its epoch."""
        node = self.nodes[str(rank)]
        node.saved_since.append((rank, step, node.mounted[rank]))
        self.say(node)

    def coordinator_starts_again(self) -> None:
        self.directory = Directory(LEASE, self.now, epoch=2000 + round(self.now))
        self.restarts = Restarts(self.directory, lambda _: self.wish)
        self.wait(LEASE + 1)

    def all_start(self) -> None:
        for rank in RANKS:
            self.start(rank)


@pytest.fixture
def cluster() -> Cluster:
    """Step 100 of each rank is on two nodes; of step 200 one part is on node ``y`` alone."""
    made = Cluster()
    for rank in RANKS:
        made.has(str(rank), (rank, 100))
        made.has("x", (rank, 100))
    made.has("0", (0, 200))
    made.has("1", (1, 200))
    made.has("y", (2, 200))
    return made


def test_when_the_last_holder_dies_and_nobody_has_started_all_go_back_together(cluster: Cluster) -> None:
    cluster.all_start()
    told = {rank: cluster.ask(rank) for rank in (0, 1)}
    assert {verdict.step for verdict in told.values()} == {200}, "they restore it"
    cluster.dies("y")
    for rank, verdict in told.items():
        with pytest.raises(TierUnavailable, match="a part of step 200 was lost while it was restored"):
            cluster.join(rank, verdict)
    for rank in RANKS:
        verdict = cluster.ask(rank)
        assert verdict.step == 100
        cluster.join(rank, verdict)


def test_when_the_last_holder_dies_after_one_has_started_the_others_fail_loudly_and_are_told_whom_to_stop(
    cluster: Cluster,
) -> None:
    cluster.all_start()
    cluster.join(0, cluster.ask(0))
    cluster.dies("y")
    with pytest.raises(TierUnavailable, match="replica 0 of its job went on from step 200 and is mounted: stop all"):
        cluster.ask(2)
    cluster.end(0)
    cluster.start(0)
    for rank in RANKS:
        verdict = cluster.ask(rank)
        assert verdict.step == 100
        cluster.join(rank, verdict)


def test_a_step_that_is_in_the_bucket_is_not_lost_with_a_holder(cluster: Cluster) -> None:
    cluster.all_start()
    backups = (Backup(200, number_before(900) + 200, 900),)
    told = {rank: cluster.ask(rank, backups=backups) for rank in (0, 1)}
    cluster.dies("y")
    for rank, verdict in told.items():
        cluster.join(rank, verdict)
    assert cluster.ask(2, backups=backups).step == 200


def test_a_job_that_is_restarted_again_in_the_middle_agrees_once_more(cluster: Cluster) -> None:
    cluster.all_start()
    first = {rank: cluster.ask(rank) for rank in RANKS}
    cluster.join(0, first[0])
    for rank in RANKS:
        cluster.end(rank)
    cluster.wait(1)
    cluster.all_start()
    second = {rank: cluster.ask(rank) for rank in (0, 1)}
    assert {verdict.step for verdict in second.values()} == {200}
    assert second[0].restart > first[0].restart
    with pytest.raises(TierUnavailable, match="chosen again"):
        cluster.join(2, first[2])  # a mount of before that went on
    for rank in (0, 1):
        cluster.join(rank, second[rank])
    last = cluster.ask(2)
    assert (last.restart, last.step) == (second[0].restart, 200)
    cluster.join(2, last)


def test_who_reports_what_it_has_not_is_not_believed_once_a_restore_has_found_it(cluster: Cluster) -> None:
    for rank in RANKS:
        cluster.has("x", (rank, 300))  # it has none of these
    cluster.all_start()
    told = cluster.ask(0)
    assert told.step == 300
    # Its files do not come, or are not what their hashes say; and it goes on reporting them.
    assert cluster.ask(1, lacking=(300,)).step == 200
    cluster.wait(10)
    with pytest.raises(TierUnavailable, match="chosen again"):
        cluster.join(0, told)
    for rank in RANKS:
        verdict = cluster.ask(rank)
        assert verdict.step == 200
        cluster.join(rank, verdict)


def test_a_partition_that_hides_a_part_is_waited_out_before_an_older_step_is_taken(cluster: Cluster) -> None:
    cluster.nodes["y"].is_up = False
    cluster.wait(LEASE + 2)
    cluster.all_start()
    with pytest.raises(TierUnavailable, match="step 200 of default/llama is waited for"):
        cluster.ask(0)
    cluster.nodes["y"].is_up = True
    cluster.wait(1)
    assert cluster.ask(0).step == 200


def go_on(cluster: Cluster, *ranks: int, forced: int | None = None) -> list[int | None]:
    """These ranks are restarted, and gives the steps that they go on from."""
    for rank in ranks:
        cluster.end(rank)
    cluster.wait(1)
    for rank in ranks:
        cluster.start(rank)
    steps: list[int | None] = []
    for rank, verdict in [(rank, cluster.ask(rank, forced=forced)) for rank in ranks]:
        try:
            cluster.join(rank, verdict)
        except TierUnavailable:  # it was chosen again: who has joined a restart begins another
            verdict = cluster.ask(rank, forced=forced)
            cluster.join(rank, verdict)
        steps.append(verdict.step)
    return steps


def test_what_a_person_wishes_on_the_job_is_followed_once(cluster: Cluster) -> None:
    cluster.wish = Wish("step 100", 100)
    assert go_on(cluster, *RANKS) == [100] * 3
    for rank in RANKS:
        cluster.goes_on(rank, 150)
    assert go_on(cluster, 1) == [150], "though the wish still stands there"
    assert go_on(cluster, *RANKS) == [150] * 3
    cluster.wish = Wish("step 100 ", 100)
    assert go_on(cluster, *RANKS) == [100] * 3, "another wish"


def test_a_wish_that_was_followed_is_not_followed_again_after_a_mount_by_hand_with_another_step(
    cluster: Cluster,
) -> None:
    cluster.wish = Wish("step 100", 100)
    assert go_on(cluster, *RANKS) == [100] * 3
    for step in (150, 160):
        for rank in RANKS:
            cluster.goes_on(rank, step)
    assert go_on(cluster, *RANKS, forced=150) == [150] * 3
    for rank in RANKS:
        cluster.goes_on(rank, 170)
    assert go_on(cluster, *RANKS) == [170] * 3


def test_a_coordinator_that_starts_again_does_not_follow_a_wish_once_more(cluster: Cluster) -> None:
    cluster.wish = Wish("step 100", 100)
    assert go_on(cluster, *RANKS) == [100] * 3
    for rank in RANKS:
        cluster.goes_on(rank, 150)
    cluster.coordinator_starts_again()
    assert go_on(cluster, 1) == [150]


def test_a_wish_that_cannot_be_followed_is_refused_with_what_can(cluster: Cluster) -> None:
    cluster.wish = Wish("step 150", 150)
    cluster.all_start()
    with pytest.raises(NotFound, match=r"step 150 of default/llama is not complete: those that are: 100, 200$"):
        cluster.ask(0)
    cluster.wish = Wish("backup 2026-01-31_08-30", backup="2026-01-31_08-30")
    there = (Backup(50, number_before(900) + 50, 900, "2026-01-30_08-30"),)
    with pytest.raises(NotFound, match=r"no backup 2026-01-31_08-30 of .*: those that are: 2026-01-30_08-30$"):
        cluster.ask(0, backups=there)
    cluster.wish = Wish("backup 2026-01-30_08-30", backup="2026-01-30_08-30")
    assert cluster.ask(0, backups=there).step == 50


def test_ranks_that_are_all_claimed_again_are_not_taken_for_at_work_with_what_they_went_on_from_before(
    cluster: Cluster,
) -> None:
    assert go_on(cluster, *RANKS) == [200] * 3
    for rank in RANKS:
        cluster.end(rank)
    cluster.all_start()
    # Each has to be answered before the next has asked: pods are made all at once.
    for rank in RANKS:
        verdict = cluster.ask(rank, forced=100)
        assert verdict.step == 100
        cluster.join(rank, verdict)


def test_a_wish_waits_until_ranks_that_are_ahead_of_it_have_stopped(cluster: Cluster) -> None:
    assert go_on(cluster, *RANKS) == [200] * 3
    cluster.wish = Wish("step 100", 100)
    cluster.end(1)
    cluster.start(1)
    with pytest.raises(TierUnavailable, match="stop all ranks of the job"):
        cluster.ask(1)
    assert go_on(cluster, *RANKS) == [100] * 3


def test_a_step_that_one_partner_brings_back_is_not_given_beside_a_rank_that_went_on_without_it() -> None:
    cluster = Cluster(groups=3)
    cluster.has("0", (0, 100))
    cluster.has("1", (1, 100))
    cluster.has("y", (2, 100), (2, 200))
    cluster.dies("y")
    cluster.start(2)  # under a lower epoch than the number of the restart
    for rank in (0, 1):
        cluster.start(rank)
    first = cluster.ask(0)
    cluster.join(0, first)
    cluster.nodes["y"].is_up = True
    cluster.wait(2)
    for rank in (1, 2):
        verdict = cluster.ask(rank)
        assert (verdict.restart, verdict.step) == (first.restart, 100), "200 is of the life before"
        cluster.join(rank, verdict)

    # What a partner saves in the life of all of them serves one that is started again, the others still saving.
    cluster.goes_on(2, 300)
    cluster.wait(1)
    cluster.end(1)
    cluster.start(1)
    assert cluster.ask(1).step == 300


def test_what_a_person_went_back_from_is_not_complete_again_after_a_later_restart(cluster: Cluster) -> None:
    """Though the job had come past it by then, and nothing was saved at the step that it went back to."""
    assert go_on(cluster, *RANKS, forced=100) == [100] * 3
    for rank in RANKS:
        cluster.goes_on(rank, 300)
    assert go_on(cluster, *RANKS) == [300] * 3
    for step in (150, 200):
        for rank in RANKS:
            cluster.end(rank)
        cluster.all_start()
        with pytest.raises(NotFound, match=rf"step {step} of .* is not complete: those that are: 100, 300$"):
            cluster.ask(0, forced=step)
    assert {one.step for one in cluster.restarts.standings(cluster.now)} == {100, 300}

    # Nor is it for another coordinator, nor in the bucket, whatever is lost.
    cluster.coordinator_starts_again()
    with pytest.raises(NotFound, match=r"those that are: 100, 300$"):
        cluster.ask(0, forced=200)
    for rank in RANKS:
        cluster.nodes[str(rank)].saved_since.clear()
    cluster.wait(1)
    assert cluster.ask(0, backups=(Backup(200, number_before(900) + 200, 900),)).step == 100


def test_a_backup_that_a_person_goes_to_counts_again_though_the_job_had_gone_back_from_it(cluster: Cluster) -> None:
    assert go_on(cluster, *RANKS, forced=100) == [100] * 3
    there = (Backup(200, number_before(900) + 200, 900),)
    for forced in (200, None):  # and nothing is saved in between
        for rank in RANKS:
            cluster.end(rank)
        cluster.all_start()
        for rank in RANKS:
            verdict = cluster.ask(rank, backups=there, forced=forced)
            assert verdict.step == 200
            cluster.join(rank, verdict)


def test_a_rank_whose_node_is_lost_is_not_given_what_it_went_back_from_before_its_last_restart(
    cluster: Cluster,
) -> None:
    for rank in RANKS:
        cluster.has("x", (rank, 200))
    assert go_on(cluster, *RANKS, forced=100) == [100] * 3
    for rank in RANKS:
        cluster.goes_on(rank, 300)
    assert go_on(cluster, *RANKS) == [300] * 3
    cluster.dies("0")
    assert {one.step for one in cluster.restarts.standings(cluster.now)} == {100, 300}
    cluster.nodes["0"] = Node("0", sequence=1000)  # another machine
    for rank in RANKS:
        cluster.end(rank)
    cluster.all_start()
    verdict = cluster.ask(0)
    assert verdict.step == 100
