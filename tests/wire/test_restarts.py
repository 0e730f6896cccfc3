"""What is said of restarts arrives as it was sent, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier import epochs
from fuse_tier.errors import InvalidRequest
from fuse_tier.identity import Identity
from fuse_tier.restarts import MOST_BRANCH_POINTS, BranchPoint, Resumption, Verdict
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.restarts import (
    resumption_from_wire,
    resumption_to_wire,
    verdict_from_wire,
    verdict_to_wire,
)

LLAMA = Identity("default", "llama", "0")

steps = st.none() | st.integers(0, 10**18 - 1)
branch_points = st.builds(BranchPoint, st.integers(0, epochs.HIGHEST), steps)


@given(steps, st.lists(branch_points, max_size=MOST_BRANCH_POINTS + 1))
def test_a_verdict_arrives_as_it_was_sent(step: int | None, points: list[BranchPoint]) -> None:
    number = 0 if step is None else 7
    sent = Verdict(9, step, number, ("1", "2"), "step 100", branch_points=tuple(points))
    assert verdict_from_wire(verdict_to_wire(sent)) == sent


@given(steps, st.integers(0, epochs.HIGHEST), st.lists(branch_points, max_size=40))
def test_what_a_volume_went_on_from_arrives_as_it_was_sent(
    step: int | None, epoch: int, points: list[BranchPoint]
) -> None:
    sent = Resumption("llama", 9, step, epoch, "step 100", is_over=True).after(points)
    assert resumption_from_wire(resumption_to_wire(LLAMA, sent)) == (LLAMA, sent)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([pb.BranchPoint(epoch=1, step=1)] * (MOST_BRANCH_POINTS + 2), "too many"),
        ([pb.BranchPoint(epoch=epochs.HIGHEST + 1)], "out of range"),
        ([pb.BranchPoint(epoch=1, step=10**18)], "step"),
    ],
)
def test_branch_points_that_cannot_be_are_refused(points: list[pb.BranchPoint], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        verdict_from_wire(pb.RestartReply(restart=9, branch_points=points))
    with pytest.raises(InvalidRequest, match=reason):
        resumption_from_wire(pb.Resumption(identity=str(LLAMA), run="llama", restart=9, epoch=2, before=points))
