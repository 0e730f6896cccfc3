"""Random operations have the outcome that they have on a tmpfs while the supervisor of their mount is killed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from hypothesis.stateful import rule

from tests.fs.mortal import MortalMachine
from tests.fs.mounted import IDENTITY, Place
from tests.fs.side_by_side import check, memory_path, reference
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.node.conftest import StartNode, is_running, make_volume

__all__ = ["memory_path", "reference"]

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_SUPERVISOR_LIVES_SECONDS = 2.0


class SupervisedVolume:
    """A volume that a node has mounted; every method blocks."""

    def __init__(self, start_node: StartNode, place: Place) -> None:
        self.place = place
        self.path = place.mountpoint
        self._start_node = start_node
        self._node = start_node()
        self._sizes = 1
        assert self._node.line().startswith("node a is ready")
        make_volume(self._node.ram, IDENTITY)
        trio.run(self._mount)

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
        old.tell(signal.SIGKILL)
        old.process.wait()

        async def workers_are_gone() -> bool:
            return not any(map(is_running, old.workers))

        trio.run(until, workers_are_gone)
        self._node = self._start_node(ram=old.ram, socket=old.socket, sizes=f"{{'*.bin': {self._sizes}MiB}}")
        assert self._node.line().startswith("node a is ready")

    def end(self) -> None:
        """In order."""
        self._node.tell(signal.SIGTERM)
        assert self._node.process.wait() == 0


class SupervisedMachine(MortalMachine):
    """The supervisor may die, too."""

    mounted: SupervisedVolume
    deaths: ClassVar[int] = 0
    _last_restart: ClassVar[float] = 0.0

    @rule()
    def kill_the_supervisor(self) -> None:
        now = time.monotonic()
        if self.is_striking or now - SupervisedMachine._last_restart < _SUPERVISOR_LIVES_SECONDS:
            return
        SupervisedMachine._last_restart = now
        SupervisedMachine.deaths += 1
        self.history.append("-- the supervisor is killed")
        self.meanwhile(self.mounted.kill_the_supervisor)


@pytest.fixture
def supervised(start_node: StartNode, memory_path: Path, mountpoint: Path, tmp_path: Path) -> SupervisedVolume:
    return SupervisedVolume(start_node, Place(memory_path, tmp_path / "fs.log", mountpoint))


@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
def test_random_operations_have_the_same_outcome_while_the_supervisor_dies(
    supervised: SupervisedVolume,
    reference: Path,
    rng: random.Random,
    expected_logs: ExpectedLogs,
    examples: int,
) -> None:
    # A supervisor, or the first daemon of a new keeper, may die in the middle of a handover.
    expected_logs.allow("daemon.ended", "mount.not_handed_over", "volume.not_upgraded")
    SupervisedMachine.deaths = 0
    check(SupervisedMachine, supervised, reference, rng, examples)
    assert SupervisedMachine.deaths
    supervised.end()
