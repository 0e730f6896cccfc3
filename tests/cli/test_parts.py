"""Which snapshots are the parts of a job's checkpoint."""

from __future__ import annotations

import pytest

from fuse_tier.checkpoints import Job
from fuse_tier.cli.parts import Parts, choose_parts
from fuse_tier.epochs import number_before
from fuse_tier.errors import NotFound, TierUnavailable
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb

JOB = "default/llama"


def whole(step: int | None, *tiers: str, is_bad: bool = False) -> Standing:
    return Standing(Job("default", "llama"), "llama", 2, step, 0, 0, tiers, is_bad)


def listed(
    replica: int, number: int, step: int | None, *, aside: bool = False, run: str = "llama", job: str = JOB
) -> pb.Snapshot:
    return pb.Snapshot(id=f"{job}/{replica}@{number}", run=run, step=step, set_aside=aside, tiers=["ram"])


def test_they_are_the_last_snapshots_of_the_newest_step_that_can_be_restored() -> None:
    snapshots = [
        listed(0, 1, 10), listed(0, 2, 20), listed(0, 3, 20), listed(0, 4, 30), listed(1, 7, 20), listed(1, 5, 10),
        listed(0, 9, 20, aside=True), listed(0, 9, 20, run="other"), listed(0, 9, 20, job="default/other"),
    ]  # fmt: skip
    standings = [whole(30, "ram", is_bad=True), whole(20, "bucket"), whole(10, "ram")]
    assert choose_parts(JOB, None, standings, snapshots) == Parts(20, {"0": 3, "1": 7})
    assert choose_parts(JOB, 10, standings, snapshots) == Parts(10, {"0": 1, "1": 5})


def test_a_step_that_a_rank_has_beside_newer_ones_alone_is_taken_from_there() -> None:
    beside = pb.Snapshot(id=f"{JOB}/0@4", run="llama", step=30, older_steps=[10, 20], set_aside=True, tiers=["ram"])
    later = pb.Snapshot(id=f"{JOB}/0@6", run="llama", step=40, older_steps=[20, 30], tiers=["ram"])
    assert choose_parts(JOB, None, [whole(20, "ram")], [beside, later, listed(1, 7, 20)]) == Parts(
        20, {"0": 4, "1": 7}
    )
    assert choose_parts(JOB, None, [whole(20, "ram")], [beside, listed(0, 3, 20), listed(1, 7, 20)]) == Parts(
        20, {"0": 3, "1": 7}
    )


def test_of_a_job_that_went_back_and_came_to_the_step_again_no_part_is_of_the_life_before() -> None:
    before, since = number_before(1) + 1, number_before(2) + 1
    given_up = pb.Snapshot(
        id=f"{JOB}/0@{before}", run="llama", step=30, older_steps=[20], set_aside=True, tiers=["ram"]
    )
    again = pb.Snapshot(id=f"{JOB}/0@{since}", run="llama", step=30, older_steps=[20], tiers=["ram"])
    found = choose_parts(JOB, 20, [whole(20, "ram")], [given_up, again, listed(1, since, 20)])
    assert found.numbers == {"0": since, "1": since}


def test_a_step_that_is_not_complete_is_told_with_those_that_are() -> None:
    with pytest.raises(NotFound, match="of default/llama is of step 15: those that can be had are of 20, 10 "):
        choose_parts(JOB, 15, [whole(20, "ram"), whole(10, "ram"), whole(5)], [])
    with pytest.raises(NotFound, match="no complete checkpoint of default/llama: those that can be had are of none"):
        choose_parts(JOB, None, [], [])


def test_parts_that_nobody_lists_now_are_missed() -> None:
    with pytest.raises(
        TierUnavailable, match="step 20 of default/llama is of 2 ranks, but snapshots of 1 are listed"
    ):
        choose_parts(JOB, None, [whole(20, "ram")], [listed(0, 3, 20)])


def test_of_ranks_that_hold_the_same_one_serves_another_which_has_lost_its_part() -> None:
    def part(replica: int, number: int, step: int) -> pb.Snapshot:
        one = listed(replica, number, step)
        one.groups, one.part = 2, replica % 2
        return one

    standing = Standing(Job("default", "llama"), "llama", 4, 20, 0, 0, ("ram",))
    snapshots = [part(0, 2, 20), part(1, 4, 20), part(2, 6, 20), part(3, 1, 10)]
    found = choose_parts(JOB, None, [standing], snapshots)
    assert found.numbers == {"0": 2, "1": 4, "2": 6}
    assert found.partners == {"0": ("2",), "1": (), "2": ("0",), "3": ("1",)}
    with pytest.raises(TierUnavailable, match="of 4 ranks, but snapshots of 2 are listed"):
        choose_parts(JOB, None, [standing], [part(0, 2, 20), part(2, 6, 20), part(3, 1, 10)])
