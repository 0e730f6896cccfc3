"""What a mount's daemon asks of the worker, over a real channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.daemons import DaemonSession
from fuse_tier.replicate.room import RoomKeeper
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.wire.channel import Arguments, connected, serve
from tests.replicate.conftest import IDENTITY, Bench

PATIENCE_SECONDS = 20.0


class Restless:
    """A daemon whose tree changes whatever it is asked, until it has been held so many times."""

    def __init__(self, rests_after: int) -> None:
        self.counter = 0
        self.holds = 0
        self._rests_after = rests_after

    async def version(self, arguments: Arguments) -> dict[str, Any]:
        self.counter += self.holds <= self._rests_after
        return {"counter": self.counter, "writers": []}

    async def hold(self, arguments: Arguments) -> dict[str, Any]:
        self.holds += 1
        return await self.version(arguments)

    async def release(self, arguments: Arguments) -> dict[str, Any]:
        return {}


def session(bench: Bench, nursery: trio.Nursery) -> DaemonSession:
    async def is_not_asked(*arguments: object) -> None:
        raise AssertionError(arguments)

    async def ended(volume: Volume, orderly: bool) -> None:
        volume.gate = None

    volumes = Volumes(
        bench.layout, bench.ram, bench.volume.options, trio.CapacityLimiter(1), nursery, has_bucket=False
    )
    room = RoomKeeper(bench.layout, bench.ram, volumes, Broadcast())
    return DaemonSession(lambda identity: bench.volume, is_not_asked, ended, is_not_asked, 1, room)


async def test_who_syncs_waits_until_a_tree_can_be_read_that_was_held_in_vain(
    bench: Bench, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse_tier.replicate.settling._RETRY_SECONDS", 0.01)
    (bench.tree / "a").write_bytes(b"a")
    socket, daemon = str(tmp_path / "worker.sock"), Restless(rests_after=1)
    await nursery.start(serve, socket, session(bench, nursery).serve)
    handlers = {"version": daemon.version, "hold": daemon.hold, "release": daemon.release}
    async with connected(socket, handlers) as channel:
        await channel.call("hello", PATIENCE_SECONDS, identity=str(IDENTITY), mountpoint="/mnt", pid=1)
        synced = await channel.call("sync", PATIENCE_SECONDS, tier="ram", deadline_seconds=PATIENCE_SECONDS)
    assert synced == {"snapshot": 1}
    assert daemon.holds == 2
