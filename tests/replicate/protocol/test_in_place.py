"""What is in a snapshot before anything is moved for a container that is started again; the rest is end to end."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from fuse_tier.errors import TierUnavailable
from fuse_tier.replicate.instant import Quiescent, TreeVersion
from fuse_tier.replicate.protocol.in_place import all_saved
from fuse_tier.replicate.volume import Volume
from tests.replicate.conftest import Bench


class BusyGate(Quiescent):
    """Somebody changes the tree whenever a snapshot is taken of it, so many times."""

    def __init__(self, volume: Volume, times: float) -> None:
        self._volume = volume
        self._times_left = times

    async def version(self) -> TreeVersion:
        if self._times_left > 0:
            self._times_left -= 1
            self._volume.changes.announce()
        return await super().version()


async def test_what_changes_a_few_times_more_is_saved_as_it_is_in_the_end(
    bench: Bench, autojump_clock: MockClock
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    bench.volume.changes.announce()
    bench.volume.gate = BusyGate(bench.volume, 2)
    async with bench.volume.still:
        await all_saved(bench.volume)
    assert not bench.volume.is_dirty
    assert bench.volume.newest is not None


async def test_nothing_is_moved_under_somebody_who_changes_the_tree_all_the_time(
    bench: Bench, autojump_clock: MockClock
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    bench.volume.changes.announce()
    bench.volume.gate = BusyGate(bench.volume, float("inf"))
    async with bench.volume.still:
        with pytest.raises(TierUnavailable, match="changed all the time, by a process in no container of its pod"):
            await all_saved(bench.volume)
