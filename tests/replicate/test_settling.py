"""When a volume's own snapshots are taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.replicate.instant import TreeVersion
from fuse_tier.replicate.settling import final_snapshot, keep_snapshots
from fuse_tier.replicate.walk import TreeChanged, Writers
from tests.replicate.conftest import Bench

SETTLE_SECONDS = 0.5
HELD_SECONDS = 1.5  # of which nine times as much is longer than a volume that does not settle is waited for
A_THREADS_TURN_SECONDS = 0.01  # of real time, in which no other begins


class Restless:
    """The gate of a tree that changes all the time, and takes its time to be read while it is held."""

    def __init__(self) -> None:
        self.counter = 0
        self.is_held = False
        self.began: list[float] = []
        self.ended: list[float] = []
        self.held_twice = trio.Event()

    async def version(self) -> TreeVersion:
        if self.is_held:
            await trio.sleep(HELD_SECONDS)
        else:
            self.counter += 1
        return TreeVersion(self.counter, Writers())

    async def hold(self, seconds: float) -> TreeVersion:
        self.began.append(trio.current_time())
        self.is_held = True
        return TreeVersion(self.counter, Writers())

    async def release(self) -> None:
        self.is_held = False
        self.ended.append(trio.current_time())
        if len(self.ended) == 2:
            self.held_twice.set()


async def test_after_a_hold_a_job_that_never_rests_goes_on_for_nine_times_as_long(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = A_THREADS_TURN_SECONDS
    volume = bench.volume
    volume.options = replace(volume.options, settle=SETTLE_SECONDS)
    gate = volume.gate = Restless()

    async def work() -> None:
        while True:
            (bench.tree / "log").write_bytes(b"%f" % trio.current_time())
            volume.changes.announce()
            await trio.sleep(SETTLE_SECONDS / 2)

    nursery.start_soon(work)
    nursery.start_soon(keep_snapshots, volume)
    await gate.held_twice.wait()
    assert gate.ended[0] - gate.began[0] >= HELD_SECONDS * 0.999
    assert gate.began[1] - gate.ended[0] >= 9 * HELD_SECONDS * 0.999
    assert volume.newest is not None


class Unready:
    """The gate of a tree that changes, held or not, until it has been held so many times."""

    def __init__(self, holds: int) -> None:
        self.counter = 0
        self.holds_left = holds

    async def version(self) -> TreeVersion:
        self.counter += self.holds_left >= 0
        return TreeVersion(self.counter, Writers())

    async def hold(self, seconds: float) -> TreeVersion:
        self.holds_left -= 1
        return TreeVersion(self.counter, Writers())

    async def release(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_the_last_snapshot_is_tried_again_after_holds_in_vain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse_tier.replicate.settling._RETRY_SECONDS", 0.01)
    (bench.tree / "file").write_bytes(b"content")
    bench.volume.gate = Unready(2)
    with pytest.raises(TreeChanged):
        await bench.volume.take_snapshot()
    await final_snapshot(bench.volume)
    assert bench.volume.newest is not None
    assert not bench.volume.is_dirty
