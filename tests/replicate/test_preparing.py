"""All ranks agree on a step: whatever is lost on the way is said again, for a while."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError, TierUnavailable
from fuse_tier.replicate.choice import Chooser
from fuse_tier.replicate.preparing import Agreed, MountOrder, Preparing
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.steps import Report
from fuse_tier.restarts import Question, Verdict
from tests.replicate.cluster import Neighbourhood, StandingMembership
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench


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


async def agree(bench: Bench, membership: Losing, around: Neighbourhood) -> Agreed:
    restorer = Restorer(bench.layout, around.places, "a", trio.CapacityLimiter(2))
    preparing = Preparing(Chooser(around.places), restorer, membership)
    order = MountOrder(IDENTITY, LINEAGE, "/mnt", is_consistent=True)

    async def follow(agreed: Agreed) -> Agreed:
        await trio.lowlevel.checkpoint()
        return agreed

    return await preparing.together(bench.volume, order, Report(), trio.lowlevel.checkpoint, follow)


@pytest.mark.parametrize("kind", [TierUnavailable, DeadlineExceeded])
async def test_a_coordinator_that_does_not_answer_is_asked_again(
    kind: type[FuseTierError], bench: Bench, autojump_clock: MockClock
) -> None:
    around = Neighbourhood(bench, "b", 1)
    membership = Losing(around, kind, 2)
    assert (await agree(bench, membership, around)).verdict == Verdict(0)
    assert membership.asked == 3


@pytest.mark.parametrize("kind", [TierUnavailable, DeadlineExceeded])
async def test_one_that_never_does_is_given_up(
    kind: type[FuseTierError], bench: Bench, autojump_clock: MockClock
) -> None:
    around = Neighbourhood(bench, "b", 1)
    begun = trio.current_time()
    with pytest.raises(kind, match="did not answer"):
        await agree(bench, Losing(around, kind, float("inf")), around)
    assert Deadline.RESTART < trio.current_time() - begun <= Deadline.RESTART + 2 * Deadline.CONTROL_CALL
