"""What is told of jobs once, and to whom."""

from __future__ import annotations

from collections.abc import Sequence

from structlog.testing import capture_logs

from fuse_tier.checkpoints import Job
from fuse_tier.coordinate.milestones import Milestones, Observer
from fuse_tier.identity import Identity
from fuse_tier.members import LocalFacts, Report
from fuse_tier.restarts import Resumption
from fuse_tier.standing import Standing

JOB = Job("default", "llama")


class Ear(Observer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def resumed(self, job: Job, step: int, ranks: int, tiers: Sequence[str]) -> None:
        self.told.append((str(job), step, ranks, tuple(tiers)))

    def not_backed_up(self, identity: Identity, reason: str) -> None:
        self.told.append((str(identity), reason))


def complete(step: int, *tiers: str) -> Standing:
    return Standing(JOB, "llama", 2, step, step, 10, tiers)


def said(milestones: Milestones, *standings: Standing) -> list[str]:
    """The texts that people look for in the log."""
    with capture_logs() as logs:
        milestones.look(standings)
    return [str(one["said"]) for one in logs if "said" in one]


def report(node: str, **failing: str) -> Report:
    """That backups of these ranks fail there, and why."""
    facts = LocalFacts(1, 1, failing={JOB.identity(name[1:]): reason for name, reason in failing.items()})
    return Report(node, "1", 1, "h:1", "h:2", facts)


def test_that_a_step_is_on_peers_is_said_once_and_of_what_was_before_the_newest_only() -> None:
    milestones = Milestones()
    before = (complete(10, "ram", "peer"), complete(20, "ram", "peer", "bucket"), complete(30, "ram"))
    assert said(milestones, *before) == ["All files were replicated globally for step 20"]
    assert said(milestones, *before) == []
    after = (complete(10, "ram"), complete(20, "ram", "peer"), complete(30, "ram", "peer"), complete(40, "peer"))
    assert said(milestones, *after) == [
        "All files were replicated globally for step 30",
        "All files were replicated globally for step 40",
    ]
    # A node that has it is away for a while.
    assert said(milestones, complete(40, "bucket")) == []
    assert said(milestones, complete(40, "peer", "bucket")) == []


def test_a_step_of_which_some_rank_has_no_verified_copy_is_not_called_replicated() -> None:
    milestones = Milestones()
    assert said(milestones, complete(10, "peer")) == ["All files were replicated globally for step 10"]
    assert said(milestones, complete(10, "peer"), complete(20, "ram")) == []


def test_a_restart_is_told_when_its_first_rank_has_joined_and_a_job_that_begins_tells_nothing() -> None:
    ear = Ear()
    milestones = Milestones([ear])
    milestones.look((complete(20, "ram", "bucket"),))
    for rank in "01":
        milestones.joined(JOB.identity(rank), Resumption("llama", 7, 20, 7))
    assert ear.told == [("default/llama", 20, 2, ("ram", "bucket"))]
    milestones.joined(JOB.identity("0"), Resumption("llama", 9, 20, 9))
    assert len(ear.told) == 2
    milestones.joined(JOB.identity("0"), Resumption("other", 9, None, 9))
    assert len(ear.told) == 2


def test_backups_that_begin_to_fail_are_told_once_for_a_job_until_all_of_them_go_well_again() -> None:
    ear = Ear()
    milestones = Milestones([ear])

    milestones.hear(report("a", r0="no right"))
    milestones.hear(report("a", r0="no right"))
    milestones.hear(report("b", r1="no right"))
    assert ear.told == [("default/llama/0", "no right")]
    milestones.hear(report("a"))
    milestones.hear(report("a", r0="again"))
    assert len(ear.told) == 1
    milestones.hear(report("a"))
    milestones.hear(report("b"))
    milestones.hear(report("b", r1="full"))
    assert ear.told[1:] == [("default/llama/1", "full")]


def test_a_node_that_is_gone_with_its_failing_backups_does_not_keep_later_ones_from_being_told() -> None:
    ear = Ear()
    milestones = Milestones([ear])
    milestones.hear(report("a", r0="no right"))
    milestones.forget(["b"])
    milestones.hear(report("b", r0="full"))
    assert ear.told == [("default/llama/0", "no right"), ("default/llama/0", "full")]


def test_a_backup_that_fails_on_two_nodes_fails_until_it_goes_well_on_both() -> None:
    ear = Ear()
    milestones = Milestones([ear])
    for node in "ab":
        milestones.hear(report(node, r0="no right"))
    milestones.hear(report("a"))
    milestones.hear(report("c", r1="no right"))
    assert ear.told == [("default/llama/0", "no right")]


def test_restarts_of_a_job_are_forgotten_when_nothing_of_it_is_left() -> None:
    ear = Ear()
    milestones = Milestones([ear])

    def join_after(*standings: Standing) -> int:
        milestones.look(standings)
        milestones.joined(JOB.identity("0"), Resumption("llama", 7, 20, 7))
        return len(ear.told)

    other = Standing(Job("default", "bert"), "bert", 2, 20, 20, 10, ("ram",))
    assert join_after(complete(20, "ram"), other) == 1
    assert join_after(complete(20, "ram")) == 1
    assert join_after(other) == 2
