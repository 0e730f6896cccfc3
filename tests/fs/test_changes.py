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
