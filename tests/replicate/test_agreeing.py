"""All ranks agree on a step: whatever is lost on the way is said again, for a while."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError, TierUnavailable
from fuse_tier.replicate.agreeing import Agreed, Agreeing, nothing_to_save
from fuse_tier.replicate.steps import Report
from fuse_tier.restarts import Question, Verdict
from tests.replicate.cluster import Neighbourhood, StandingMembership
from tests.replicate.conftest import LINEAGE, Bench


class Losing(StandingMembership):
    """Its coordinator's answers are lost until ``losses`` have been."""

    def __init__(self, neighbourhood: Neighbourhood, kind: type[FuseTierError], losses: float) -> None:
        super().__init__(neighbourhood)
        self._kind = kind
        self._losses = losses
        self.asked = 0

    async def restart(self, question: Question) -> Verdict:
        await trio.sleep(Deadline.CONTROL_CALL)
        self.asked += 1
        if self.asked <= self._losses:
            raise self._kind("the coordinator did not answer")
        return Verdict(0)


async def agree(bench: Bench, membership: Losing) -> Agreed:
    async def follow(agreed: Agreed) -> Agreed:
        await trio.lowlevel.checkpoint()
        return agreed

    return await Agreeing(membership).together(bench.volume, LINEAGE, Report(), nothing_to_save, follow)


@pytest.mark.parametrize("kind", [TierUnavailable, DeadlineExceeded])
async def test_a_coordinator_that_does_not_answer_is_asked_again(
    kind: type[FuseTierError], bench: Bench, autojump_clock: MockClock
) -> None:
    around = Neighbourhood(bench, "b", 1)
    membership = Losing(around, kind, 2)
    assert (await agree(bench, membership)).verdict == Verdict(0)
    assert membership.asked == 3


@pytest.mark.parametrize("kind", [TierUnavailable, DeadlineExceeded])
async def test_one_that_never_does_is_given_up(
    kind: type[FuseTierError], bench: Bench, autojump_clock: MockClock
) -> None:
    around = Neighbourhood(bench, "b", 1)
    begun = trio.current_time()
    with pytest.raises(kind, match="did not answer"):
        await agree(bench, Losing(around, kind, float("inf")))
    assert Deadline.RESTART < trio.current_time() - begun <= Deadline.RESTART + 2 * Deadline.CONTROL_CALL
