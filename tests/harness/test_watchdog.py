from __future__ import annotations

import pytest
import trio

from tests.harness.watchdog import body_seconds, bounded


async def test_a_test_that_hangs_is_cancelled_and_fails_whatever_its_clock_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cleaned_up = trio.Event()

    async def hang() -> None:
        try:
            while True:
                await trio.lowlevel.checkpoint()
        finally:
            cleaned_up.set()

    with pytest.raises(pytest.fail.Exception, match="still running after"):
        await bounded(hang, 0.05)()
    assert cleaned_up.is_set()


async def test_a_test_that_ends_in_time_is_left_alone() -> None:
    await bounded(trio.lowlevel.checkpoint, 60)()


def test_the_body_leaves_time_to_clean_up() -> None:
    assert body_seconds(150) == 120
    assert body_seconds(10) == 8
