"""What a node knows of the others by a coordinator's answers, whatever these leave out."""

from __future__ import annotations

from dataclasses import replace

from fuse_tier.checkpoints import Job
from fuse_tier.coordinate.attendance import Attendance
from fuse_tier.members import LocalFacts, Member, Report
from fuse_tier.replicate.correspondence import Correspondence
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import member_to_wire

MEMBERS = tuple(Member(f"n{number}", "1", "127.0.0.1:1", "127.0.0.1:2", True) for number in range(300))
REPORT = Report("n0", "1", 1, "127.0.0.1:1", "127.0.0.1:2", LocalFacts(1, 1))


class Coordinator:
    """One life of it, to which all have reported."""

    def __init__(self, life: str, members: tuple[Member, ...] = MEMBERS) -> None:
        self.life = life
        self.members = members
        self.attendance = Attendance(life)
        for one in members:
            self.attendance.see(one)

    def answer(self, letters: Correspondence, now: float) -> pb.ReportReply:
        asked = letters.request(REPORT, 0)
        roster = self.attendance.since(asked.roster_life, asked.roster_version, now)
        return pb.ReportReply(epoch=self.life, lease_seconds=5, pause_seconds=1, roster=roster)

    def be_busy(self, now: float) -> None:
        """It tells everything to so many others that the next who asks has to wait."""
        for _ in range(1000):
            self.attendance.since("", 0, now)


def test_who_has_to_wait_for_everything_goes_on_with_what_it_knew() -> None:
    letters = Correspondence("default")
    before = letters.take(REPORT, Coordinator("first").answer(letters, 10.0))
    assert set(before) == set(MEMBERS)
    second = Coordinator("second", tuple(replace(one, instance="2") for one in MEMBERS))
    second.be_busy(10.0)
    reply = second.answer(letters, 10.0)
    assert not reply.roster
    assert letters.take(REPORT, reply) == before
    assert letters.request(replace(REPORT, sequence=2), 0).since == REPORT.sequence, "it was heard all the same"
    assert set(letters.take(REPORT, second.answer(letters, 12.0))) == set(second.members), "and asked again"


def test_nor_does_it_forget_anybody_when_somebody_else_was_forgotten() -> None:
    letters, coordinator = Correspondence("default"), Coordinator("first")
    before = letters.take(REPORT, coordinator.answer(letters, 10.0))
    coordinator.members = MEMBERS[:-1]
    coordinator.attendance.forget_all_but(one.node for one in coordinator.members)
    coordinator.be_busy(10.0)
    assert letters.take(REPORT, coordinator.answer(letters, 10.0)) == before
    assert set(letters.take(REPORT, coordinator.answer(letters, 12.0))) == set(coordinator.members)


def test_of_an_earlier_minor_version_each_answer_is_of_everybody() -> None:
    letters = Correspondence("default")
    letters.take(REPORT, Coordinator("first").answer(letters, 10.0))
    reply = pb.ReportReply(epoch="second", members=map(member_to_wire, MEMBERS[:2]))
    assert letters.take(REPORT, reply) == MEMBERS[:2]
    assert letters.take(REPORT, pb.ReportReply(epoch="second")) == ()


def test_standings_are_told_as_changes_only_to_who_knows_of_these() -> None:
    job = Job("ml", "llama")
    standings = tuple(Standing(job, "llama", 2, step, step, 1, ("bucket",)) for step in (1, 2))
    first = replace(REPORT, facts=replace(REPORT.facts, standings=standings[:1]))
    second = replace(REPORT, sequence=2, facts=replace(REPORT.facts, standings=standings))
    for minor, told in (7, [1, 2]), (8, [2]):
        letters = Correspondence("default")
        letters.take(first, pb.ReportReply(epoch="first", pause_seconds=1, minor=minor if minor > 7 else 0))
        request = letters.request(second, 0)
        assert [one.step for one in request.standings] == told
        assert request.standings_since == (minor == 8)
