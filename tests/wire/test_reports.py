"""A node's reports on the wire: whole, or as changes, they come to the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.errors import InvalidRequest
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import JobAddress, LocalFacts, Member, Report
from fuse_tier.restarts import BranchPoint, Resumption
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import member_to_wire
from fuse_tier.wire.reports import report_from_wire, report_to_wire, roster_from_wire, roster_to_wire

VOLUMES = [Identity("default", "llama", str(rank)) for rank in range(3)]
LINEAGE = Lineage("llama", world_size=3)
JOB = Job("default", "llama")
volumes = st.sampled_from(VOLUMES)
standings = st.builds(
    Standing, st.just(JOB), st.just("llama"), st.just(2), st.none() | st.integers(0, 3), st.integers(1, 3),
    st.integers(0, 2), st.sampled_from([("bucket",), ()]), st.booleans(),
)  # fmt: skip
numbers = st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True).map(lambda some: tuple(sorted(some)))


def saved(identity: Identity, number: int) -> tuple[Saved, ...]:
    older = tuple(range(number - 2, number)) if number > 2 else ()
    return (Saved(SnapshotId(identity, number), LINEAGE, number, 10**9 * number, number, older),)


branch_points = st.sampled_from([(), (BranchPoint(1, None),)])


@st.composite
def facts(draw: st.DrawFn) -> LocalFacts:
    mounted = draw(st.frozensets(volumes))
    held: Mapping[Identity, tuple[int, ...]] = draw(st.dictionaries(volumes, numbers))
    return LocalFacts(
        100,
        draw(st.integers(0, 100)),
        mounted=mounted,
        holdings=held,
        bucket=draw(st.dictionaries(volumes, numbers)),
        epochs={one: draw(st.integers(1, 3)) for one in mounted},
        users={one: "a pod" for one in mounted if draw(st.booleans())},
        saved={one: saved(one, several[-1]) for one, several in held.items()},
        resumed={
            one: Resumption(
                "llama", 1, draw(st.integers(0, 3)), 2, is_over=draw(st.booleans()), before=draw(branch_points)
            )
            for one in mounted
            if draw(st.booleans())
        },
        standings=tuple(draw(st.lists(standings, unique_by=lambda one: one.key, max_size=4))),
    )


def report(sequence: int, said: LocalFacts) -> Report:
    return Report("a", "a1", sequence, "127.0.0.1:1", "127.0.0.1:2", said, lease_seconds=5.0)


def test_a_report_arrives_as_it_was_sent() -> None:
    sent = report(1, LocalFacts(100, 50, frozenset(VOLUMES[:1]), {VOLUMES[0]: (1, 2)}, epochs={VOLUMES[0]: 3}))
    assert report_from_wire(report_to_wire(sent, "default")) == sent


@given(st.lists(facts(), min_size=2, max_size=5))
def test_changes_one_after_another_come_to_what_a_whole_report_says(told: list[LocalFacts]) -> None:
    before = report(1, told[0])
    heard = report_from_wire(report_to_wire(before, "default"))
    for sequence, said in enumerate(told[1:], 2):
        sent = report(sequence, said)
        message = report_to_wire(sent, "default", before)
        assert message.since == before.sequence
        heard = report_from_wire(message, heard)
        assert sorted(heard.facts.standings, key=repr) == sorted(said.standings, key=repr)
        assert replace(heard, facts=replace(heard.facts, standings=said.standings)) == sent
        before = sent


def test_of_a_volume_that_is_as_before_nothing_is_said_again() -> None:
    before = report(1, LocalFacts(100, 50, holdings=dict.fromkeys(VOLUMES, (1, 2))))
    after = replace(
        before, sequence=2, facts=replace(before.facts, holdings={**before.facts.holdings, VOLUMES[1]: (3,)})
    )
    message = report_to_wire(after, "default", before)
    assert [one.identity for one in message.holdings] == [str(VOLUMES[1])]
    same = report_to_wire(replace(after, sequence=3), "default", after)
    assert not same.holdings and not same.gone
    heard = report_from_wire(same, after)
    assert (heard.facts.holdings is after.facts.holdings, heard.facts.saved is after.facts.saved) == (True, True)


def test_of_checkpoints_that_stand_as_before_nothing_is_said_again() -> None:
    one, two, three = (Standing(JOB, "llama", 2, step, step, 1, ("bucket",)) for step in range(3))
    before = report(1, LocalFacts(100, 50, standings=(one, two)))
    after = report(2, LocalFacts(100, 50, standings=(replace(two, is_bad=True), three)))
    message = report_to_wire(after, "default", before)
    assert [told.step for told in message.standings] == [1, 2]
    assert [told.step for told in message.standings_gone] == [0]
    same = report_to_wire(replace(after, sequence=3), "default", after)
    assert (list(same.standings), list(same.standings_gone)) == ([], [])
    assert report_from_wire(same, after).facts.standings == after.facts.standings


def test_when_the_coordinator_of_a_job_was_registered_is_told_with_where_it_is() -> None:
    registered = {"llama": JobAddress("10.0.0.1", 7), "bert": JobAddress("10.0.0.2")}
    sent = report(1, LocalFacts(1, 1, job_addresses=registered))
    assert report_from_wire(report_to_wire(sent, "default")).facts.job_addresses == registered


@pytest.mark.parametrize("registered", [(1 << 63), (1 << 64) - 1])
def test_a_time_of_registration_that_is_none_is_refused(registered: int) -> None:
    message = report_to_wire(report(1, LocalFacts(1, 1)), "default")
    message.job_addresses["llama"] = "10.0.0.1"
    message.job_registered["llama"] = registered
    with pytest.raises(InvalidRequest, match="is no time"):
        report_from_wire(message)


def test_whatever_others_have_registered_what_comes_after_it_can_be_reported() -> None:
    registered = known = JobAddress("10.0.0.1", JobAddress.LATEST)
    for _ in range(2):
        registered = JobAddress("10.0.0.2", 7).after(registered)
    sent = report(1, LocalFacts(1, 1, job_addresses={"llama": registered}))
    assert report_from_wire(report_to_wire(sent, "default")).facts.job_addresses == {
        "llama": JobAddress("10.0.0.2", known.registered)
    }


def test_checkpoints_whose_parts_are_said_to_be_larger_than_can_be_are_told_all_the_same() -> None:
    said = Standing(JOB, "llama", 3, 1, 1, 3 * ((1 << 64) - 1), ("ram",))
    sent = report(1, LocalFacts(1, 1, standings=(said,)))
    assert report_from_wire(report_to_wire(sent, "default")).facts.standings == (replace(said, size=(1 << 64) - 1),)


@pytest.mark.parametrize("older", [[2, 1], [3], [10**18]])
def test_older_steps_that_are_none_are_refused(older: list[int]) -> None:
    message = report_to_wire(report(1, LocalFacts(1, 1, saved={VOLUMES[0]: saved(VOLUMES[0], 3)})), "default")
    message.saves[0].older[0].steps[:] = older
    with pytest.raises(InvalidRequest, match="step"):
        report_from_wire(message)


@pytest.mark.parametrize("wrong", [{"gone": ["../../x"]}, {"lease_seconds": float("nan")}, {"lease_seconds": -1.0}])
def test_a_malformed_change_is_refused(wrong: dict[str, object]) -> None:
    before = report(1, LocalFacts(1, 1))
    message = report_to_wire(replace(before, sequence=2), "default", before)
    message.MergeFrom(pb.ReportRequest(**wrong))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        report_from_wire(message, before)


@pytest.mark.parametrize("nodes", [1, 300])
def test_a_roster_arrives_as_it_was_sent_however_many_are_in_it(nodes: int) -> None:
    members = tuple(Member(f"n{number}", "1", "127.0.0.1:1", "127.0.0.1:2", True) for number in range(nodes))
    text = roster_to_wire(7, map(member_to_wire, members), is_whole=True)
    assert roster_from_wire(text) == (7, True, members)
    if nodes > 1:
        assert len(text) < 30 * nodes, "of many it is packed"


@pytest.mark.parametrize("text", [b"\xff", pb.Roster(packed=b"no stream").SerializeToString()])
def test_a_roster_that_cannot_be_read_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        roster_from_wire(text)
