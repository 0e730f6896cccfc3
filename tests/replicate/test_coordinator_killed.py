"""The coordinator, a process of its own, is killed at every message of a job's restart, before and after it acts.

Two ranks save, are restarted and go on, one after another, as their nodes' workers do it: what fails is tried again.
However often the coordinator began anew meanwhile, both go on from the same step, and no volume has two owners.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import failpoints
from fuse_tier.checkpoints import Job, Saved
from fuse_tier.epochs import number_before
from fuse_tier.errors import DeadlineExceeded, IdentityBusy, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.localcluster.services import LocalCoordinator
from fuse_tier.manifest import Lineage
from fuse_tier.restarts import Question, Resumption
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.replicate.members import Cluster, Node

JOB = Job("default", "llama")
LINEAGE = Lineage("llama", world_size=2)
# The others take minutes together; locating changes nothing.
CALLS = [
    "restart",
    "join",
    *(pytest.param(call, marks=pytest.mark.chaos) for call in ("report", "claim", "release")),
]
LEASE_SECONDS = 4.0  # longer than the nodes take to connect again, which begins after up to two seconds
PATIENCE_SECONDS = 60.0


def saved(identity: Identity, epoch: int, *steps: int) -> tuple[Saved, ...]:
    return tuple(Saved(SnapshotId(identity, number_before(epoch) + step), LINEAGE, step, 1) for step in steps)


class Rank:
    """One rank on a node, whose worker is played: it claims, saves, restarts and joins."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.identity = JOB.identity(str(number))
        self.steps: list[int | None] = []

    async def claim(self) -> None:
        await self.node.membership.claim(self.identity)

    def save(self, *steps: int) -> None:
        several = saved(self.identity, self.node.membership.epoch(self.identity), *steps)
        self.node.facts = replace(
            self.node.facts,
            holdings={self.identity: tuple(one.id.number for one in several)},
            saved={self.identity: several},
        )
        self.node.membership.report_soon()

    async def is_told_to(self, coordinator: LocalCoordinator) -> bool:
        try:
            picture = await coordinator.picture()
        except TierUnavailable:
            return False
        held = {tuple(one.numbers) for volume in picture.volumes for one in volume.holders}
        return self.node.facts.holdings[self.identity] in held

    async def go_on(self) -> None:
        """From the step that is chosen, told and joined; asked again from the beginning whenever that fails."""
        membership = self.node.membership
        verdict = await membership.restart(Question(self.identity, LINEAGE))
        resumption = Resumption("llama", verdict.restart, verdict.step, membership.epoch(self.identity))
        await membership.join(self.identity, resumption)
        self.node.facts = replace(self.node.facts, resumed={self.identity: resumption})
        self.steps.append(verdict.step)

    async def release(self) -> None:
        await self.node.membership.release(self.identity)


async def persistently(step: Callable[[], Awaitable[None]]) -> None:
    """As a mount is tried again."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                return await step()
            except (TierUnavailable, DeadlineExceeded):
                await trio.sleep(0.05)


@pytest.mark.parametrize("call", CALLS)
async def test_wherever_it_is_killed_all_ranks_go_on_from_one_step(
    call: str, cluster: Cluster, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("membership.coordinator_unavailable")
    config = {"listen": cluster.coordinator, "lease": LEASE_SECONDS}
    coordinator = LocalCoordinator(cluster.coordinator, tmp_path / "coordinator", config, None)
    armed = tmp_path / "failpoint"
    coordinator.family.environment[failpoints.VARIABLE] = str(armed)
    await coordinator.start()
    kills = 0

    async def keep_alive() -> None:
        nonlocal kills
        while True:
            if not coordinator.family.runs:
                kills += 1
                await coordinator.start()
            await trio.sleep(0.05)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_alive)
            ranks = [Rank(await cluster.start(name), number) for number, name in enumerate("ab")]
            for moment in ("heard", "answering"):
                for number, rank in enumerate(ranks):
                    await persistently(rank.claim)
                    rank.save(100, *([200] if number == 0 else []))  # one of them is ahead
                for rank in ranks:
                    await until(partial(rank.is_told_to, coordinator))
                failpoints.arm(str(armed), f"coordinator.{call}.{moment}", "kill")
                for rank in ranks:
                    await persistently(rank.claim)
                    await persistently(rank.go_on)
                for rank in ranks:
                    await rank.release()
                assert not armed.exists(), f"{call} was never {moment}"
                with trio.fail_after(PATIENCE_SECONDS):
                    while not coordinator.family.runs:  # noqa: ASYNC110 - it is started above
                        await trio.sleep(0.05)
            for rank in ranks:
                assert rank.steps == [100, 100]
            await persistently(ranks[0].claim)
            with pytest.raises(IdentityBusy):
                await ranks[1].node.membership.claim(ranks[0].identity)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await coordinator.kill()
    assert kills == 2
