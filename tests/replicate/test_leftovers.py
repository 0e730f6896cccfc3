"""What becomes of a tree that another node has gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.replicate.leftovers import Leftovers
from fuse_tier.replicate.replacing import Trees
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import Bench
from tests.replicate.test_succession import taken_by


@pytest.fixture
async def around(bench: Bench, nursery: trio.Nursery) -> Neighbourhood:
    around = Neighbourhood(bench, "bc", 1)
    (bench.tree / "a").write_bytes(b"a")
    await bench.volume.take_snapshot()
    nursery.start_soon(Leftovers(Trees(bench.layout, bench.ram), around.membership).keep_down, bench.volume)
    return around


async def test_a_tree_that_was_left_behind_goes_when_a_newer_snapshot_is_elsewhere(
    around: Neighbourhood, bench: Bench, autojump_clock: MockClock
) -> None:
    bench.volume.tenure.superseded = "b"
    await trio.sleep(120)
    assert (bench.tree / "a").exists()
    await around.peers["b"].commit(taken_by("b", 2))
    pins = Path(bench.volume.layout.pins)
    while bench.volume.has_tree or bench.tree.exists() or list(pins.glob("*")):
        await trio.to_thread.run_sync(int)  # a thread is at it, for which this clock does not wait
        await trio.sleep(1)


async def test_a_tree_that_is_mounted_or_nobody_elses_stays(
    around: Neighbourhood, bench: Bench, autojump_clock: MockClock
) -> None:
    await around.peers["b"].commit(taken_by("b", 2))
    await trio.sleep(120)
    bench.volume.tenure.superseded = "b"
    bench.volume.mountpoint = "/mnt"
    await trio.sleep(120)
    assert (bench.tree / "a").exists()
