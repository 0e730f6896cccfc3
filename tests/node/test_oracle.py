"""Random operations have the outcome that they have on a tmpfs, whatever falls on who serves them meanwhile.

The daemon is killed and stopped, the supervisor is killed, a newer keeper takes over, the tier is full for a moment,
and content is given up and comes back when it is opened: all in one machine, with passthrough and without.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.fs.evicting import EvictingMachine, EvictingWorker
from tests.fs.machine import things_in_little_room
from tests.fs.mounted import IDENTITY, Place
from tests.fs.oracle import Side
from tests.fs.side_by_side import check, memory_path, reference
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import StartNode, is_running, make_volume

__all__ = ["memory_path", "reference"]

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_SUPERVISOR_LIVES_SECONDS = 2.0
_ROUNDS = 5  # of few examples one may leave something out
_BLOWS = {
    "the daemon is killed",
    "the daemon is stopped",
    "the supervisor is killed",
    "another keeper",
    "the tier is full",
    "content is given up",
}


class SupervisedVolume:
    """A volume that a node has mounted, with a worker that evicts; every method blocks."""

    def __init__(self, start_node: StartNode, place: Place, passthrough: str) -> None:
        self.place = place
        self.path = place.mountpoint
        self.worker = EvictingWorker(place)
        self._start_node = start_node
        self._more = f"passthrough: '{passthrough}'\n"
        self._node = start_node(socket=place.socket.removesuffix(".volumes"), more=self._more)
        self._sizes = 1
        assert self._node.line().startswith("node a is ready")
        self.worker.start()
        make_volume(self._node.ram, IDENTITY)
        trio.run(self._mount)
        self.worker.wait_for_daemon()

    async def _mount(self) -> None:
        await self._node.call("mount", identity=str(IDENTITY), mountpoint=str(self.path), read_only=False)

    async def _listed(self) -> dict[str, Any]:
        (listed,) = await self._node.call("mounts")
        return dict(listed)

    @property
    def daemon(self) -> int:
        return int(trio.run(self._listed)["daemon"])

    def kill_the_supervisor(self) -> None:
        """Returns when the next one has the mount."""
        keeper = trio.run(self._listed)["pid"]
        self._restart()
        assert trio.run(self._listed)["pid"] == keeper

    def upgrade(self) -> None:
        """The next supervisor has other settings: a keeper of its own takes over."""
        keeper = trio.run(self._listed)["pid"]
        self._sizes += 1
        self._restart()

        async def is_upgraded() -> bool:
            return bool((await self._listed())["pid"] != keeper)

        trio.run(until, is_upgraded)

    def _restart(self) -> None:
        old = self._node
        self.worker.stop()  # a worker ends with its supervisor
        old.tell(signal.SIGKILL)
        old.process.wait()

        async def workers_are_gone() -> bool:
            return not any(map(is_running, old.workers))

        trio.run(until, workers_are_gone)
        sizes = f"{{'*.bin': {self._sizes}MiB}}"
        self._node = self._start_node(ram=old.ram, socket=old.socket, sizes=sizes, more=self._more)
        assert self._node.line().startswith("node a is ready")
        self.worker.start()

    def end(self) -> None:
        """In order."""
        self.worker.stop()
        self._node.tell(signal.SIGTERM)
        assert self._node.process.wait() == 0


class SupervisedMachine(EvictingMachine):
    """The supervisor may die, too."""

    mounted: SupervisedVolume
    _last_restart: ClassVar[float] = 0.0  # of all examples'

    @initialize(pages=st.integers(0, 3), things=things_in_little_room)
    def begin_full_and_evicted(self, pages: int, things: list[tuple[str, int, int]]) -> None:
        """What few random operations find the occasion for."""
        self.both(Side.open, b"c", os.O_RDWR, 0)
        self.fill(0, pages, things)
        self.give_up(b"a/c")
        self.both(Side.read, b"a/c")

    def before_the_tier_is_full(self) -> None:
        """A node does not start in a full tier, and who finds no room waits for the worker that starts with it."""
        if self._blow is not None:
            self._blow.join()

    @rule()
    def kill_the_supervisor(self) -> None:
        now = time.monotonic()
        if self.is_striking or now - SupervisedMachine._last_restart < _SUPERVISOR_LIVES_SECONDS:
            return
        SupervisedMachine._last_restart = now
        self.happened("the supervisor is killed")
        self.meanwhile(self.mounted.kill_the_supervisor)


@pytest.fixture(params=["on", "off"], ids=["passthrough", "plain"])
def supervised(
    request: pytest.FixtureRequest, start_node: StartNode, memory_path: Path, mountpoint: Path, tmp_path: Path
) -> Iterator[SupervisedVolume]:
    volume = SupervisedVolume(start_node, Place(memory_path, tmp_path / "fs.log", mountpoint), request.param)
    try:
        yield volume
    finally:
        volume.worker.stop()


@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
def test_random_operations_have_the_same_outcome_whatever_falls_on_who_serves_them(
    supervised: SupervisedVolume,
    reference: Path,
    rng: random.Random,
    expected_logs: ExpectedLogs,
    examples: int,
) -> None:
    # A supervisor, or the first daemon of a new keeper, may die in the middle of a handover.
    expected_logs.allow("daemon.ended", "mount.not_handed_over", "volume.not_upgraded")
    expected_logs.allow("worker.refused")  # the daemon may come back to a worker that is just ending

    class Supervised(SupervisedMachine):
        worker = supervised.worker
        fallen: ClassVar[Counter[str]] = Counter()

    for _ in range(_ROUNDS):
        check(Supervised, supervised, reference, rng, examples)
        if set(Supervised.fallen) == _BLOWS:
            break
    assert set(Supervised.fallen) == _BLOWS
    assert supervised.worker.fetched
    supervised.end()
