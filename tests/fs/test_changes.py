"""The gate that keeps a tree still, by a clock of the test's own."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.deadlines import Deadline
from fuse_tier.fs.changes import Changes
from tests.harness.logs import ExpectedLogs


@pytest.mark.parametrize(("asked", "held"), [(5.0, 5.0), (3600.0, Deadline.HOLD_LONGER), (-1.0, 0.0)])
async def test_changes_are_kept_back_for_as_long_as_was_asked_but_never_for_ever(
    autojump_clock: MockClock, expected_logs: ExpectedLogs, asked: float, held: float
) -> None:
    expected_logs.allow("hold.lapsed")
    changes, began = Changes(0), trio.current_time()
    changes.hold(asked)
    await changes.passed()
    assert trio.current_time() - began == pytest.approx(held)
    assert not changes.held


async def test_changes_that_come_right_after_each_other_are_announced_together(autojump_clock: MockClock) -> None:
    changes = Changes(0)
    announced: list[int] = []

    async def announce() -> None:
        while True:
            announced.append(await changes.unannounced())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(announce)
        for pause in (0.001, 0.001, 1, 0.001, 1):
            changes.record()
            await trio.sleep(pause)
        nursery.cancel_scope.cancel()
    assert announced == [4, 6]
