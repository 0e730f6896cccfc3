"""Of several coordinators a node listens to the newest, and keeps which one that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuse_tier.epochs import FARTHEST_AHEAD, from_the_time
from fuse_tier.errors import TierUnavailable
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import Reserve, room_of
from fuse_tier.replicate.terms import Terms
from tests.fs.filling import Fillable, small_tmpfs
from tests.harness.logs import ExpectedLogs

ADDRESS = "127.0.0.1:1"
SIZE = 8 << 20


def kept(layout: Layout) -> int:
    """What is known after a start."""
    terms = Terms(layout)
    terms.load()
    return terms.highest


@pytest.mark.root
async def test_the_newest_is_kept_in_a_tier_that_is_full(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "tier", SIZE) as path:
        layout = Layout(str(path))
        Reserve(layout).refill()
        terms = Terms(layout)
        await terms.obey(5, ADDRESS)
        with Fillable(path, SIZE).filled_up(0):
            assert room_of(layout.root).free == 0
            await terms.obey(6, ADDRESS)
            assert kept(layout) == 6


async def test_who_hears_of_an_older_one_while_a_newer_one_is_noted_refuses_it(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    terms = Terms(layout)
    threads = trio.to_thread.current_default_thread_limiter()
    threads.total_tokens = 1
    async with trio.open_nursery() as nursery, threads:  # so the note is not written yet
        nursery.start_soon(terms.obey, 7, ADDRESS)
        await wait_all_tasks_blocked()

        async def hear_of_the_older_one() -> None:
            with pytest.raises(TierUnavailable, match="was replaced by one of term 7"):
                await terms.obey(6, ADDRESS)

        nursery.start_soon(hear_of_the_older_one)
        await wait_all_tasks_blocked()
    assert terms.highest == kept(layout) == 7


async def test_a_coordinator_whose_clock_is_out_of_all_reason_locks_nobody_out(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    terms = Terms(layout)
    with pytest.raises(TierUnavailable, match="set the clock of its machine"):
        await terms.obey(from_the_time() + 2 * FARTHEST_AHEAD, ADDRESS)
    await terms.obey(from_the_time(), ADDRESS)
    assert 0 < kept(layout) == terms.highest


def test_nor_does_one_that_was_kept(tmp_path: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("terms.unreadable")
    layout = Layout(str(tmp_path))
    Path(layout.term).write_text(str(from_the_time() + 2 * FARTHEST_AHEAD))
    assert kept(layout) == 0
    assert expected_logs.heard
