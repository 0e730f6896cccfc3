"""All ranks agree on a step: whatever is lost on the way is said again, for a while."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import number_before
from fuse_tier.errors import DeadlineExceeded, FuseTierError, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.replicate.agreeing import Agreed, Agreeing, nothing_to_save
from fuse_tier.replicate.steps import Report
from fuse_tier.restarts import BranchPoint, Question, Resumption, Verdict
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


class Choosing(StandingMembership):
    """Has all go on from a step, and tells what it knows of the volume."""

    def __init__(self, neighbourhood: Neighbourhood, told: tuple[BranchPoint, ...]) -> None:
        super().__init__(neighbourhood)
        self._told = told
        self.joined: list[Resumption] = []

    async def restart(self, question: Question) -> Verdict:
        await trio.lowlevel.checkpoint()
        return Verdict(9, 300, number_before(5) + 3, branch_points=self._told)

    async def join(self, identity: Identity, resumption: Resumption) -> None:
        await trio.lowlevel.checkpoint()
        self.joined.append(resumption)


async def test_what_a_volume_went_back_from_is_told_on_by_whoever_knew_it(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    whole = await bench.volume.take_snapshot()
    assert whole is not None
    await bench.volume.went_on_from(Resumption(LINEAGE.run, 7, 100, epoch=5))
    membership = Choosing(Neighbourhood(bench, "b", 1), (BranchPoint(4, 50),))
    await membership.claim(bench.volume.identity, above=5)

    async def follow(agreed: Agreed) -> None:
        await trio.lowlevel.checkpoint()
        bench.volume.began(LINEAGE, whole, whole.id.number, is_tentative=True)

    await Agreeing(membership).together(bench.volume, LINEAGE, Report(), nothing_to_save, follow)
    agreed = Resumption(LINEAGE.run, 9, 300, epoch=6, before=(BranchPoint(4, 50), BranchPoint(5, 100)))
    assert membership.joined == [agreed]
    assert bench.volume.tenure.resumption == agreed


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
