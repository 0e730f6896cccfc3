"""Random operations while the daemon of the mount dies, is stopped, and goes to another keeper."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.fs.machine import Machine, Volume

# A keeper gives a volume up whose daemons die young.
_DAEMON_LIVES_SECONDS = 0.4
_KEEPER_LIVES_SECONDS = 3.0  # a start takes half of one


class MortalVolume(Volume, Protocol):
    """A volume whose daemon may be anybody's victim."""

    @property
    def daemon(self) -> int:
        """Its pid; 0 between two."""
        ...

    def upgrade(self) -> None:
        """Has another keeper take over."""
        ...


class MortalMachine(Machine):
    """The daemon may die, be stopped for a while, and go to another keeper, in the middle of whatever is done."""

    _last_death: ClassVar[float] = 0.0  # of all examples', which have one mount
    _last_upgrade: ClassVar[float] = 0.0

    mounted: MortalVolume

    def __init__(self, mounted: MortalVolume, reference: Path, number: int) -> None:
        super().__init__(mounted, reference, number)
        self._blow: threading.Thread | None = None
        self._failures: list[BaseException] = []

    @rule(after_milliseconds=st.integers(0, 20))
    def kill_the_daemon(self, after_milliseconds: int) -> None:
        self._strike(after_milliseconds, signal.SIGKILL, "the daemon is killed")

    @rule(after_milliseconds=st.integers(0, 20))
    def stop_the_daemon_for_a_moment(self, after_milliseconds: int) -> None:
        self._strike(after_milliseconds, signal.SIGSTOP, "the daemon is stopped")

    @rule()
    def upgrade_the_keeper(self) -> None:
        if self.is_striking or time.monotonic() - MortalMachine._last_upgrade < _KEEPER_LIVES_SECONDS:
            return
        self.happened("another keeper")
        MortalMachine._last_upgrade = time.monotonic()
        self.meanwhile(self.mounted.upgrade)

    def meanwhile(self, blow: Callable[[], object]) -> None:
        """Does it while the operations go on."""

        def strike() -> None:
            try:
                blow()
            except BaseException as failure:  # noqa: BLE001 - raised in the test's own thread
                self._failures.append(failure)

        self._blow = threading.Thread(target=strike)
        self._blow.start()

    @property
    def is_striking(self) -> bool:
        """Whether the last blow still falls."""
        return self._blow is not None and self._blow.is_alive()

    def _strike(self, after_milliseconds: int, blow: signal.Signals, told_as: str) -> None:
        if self.is_striking:
            return
        now = time.monotonic()
        daemon = self.mounted.daemon
        if not daemon or (blow is signal.SIGKILL and now - MortalMachine._last_death < _DAEMON_LIVES_SECONDS):
            return
        self.happened(told_as, f"after {after_milliseconds} ms")
        if blow is signal.SIGKILL:
            MortalMachine._last_death = now
        # From a process of its own: a store to a mapping waits for the daemon without letting any thread of this one
        # run, not even the one that would let the daemon go on.
        script = f"sleep {after_milliseconds / 1000}; kill -{blow.name.removeprefix('SIG')} {daemon}"
        if blow is signal.SIGSTOP:
            script += f"; sleep 0.02; kill -CONT {daemon}"
        striker = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL)  # it may be gone by then
        self.meanwhile(striker.wait)

    def teardown(self) -> None:
        if self._blow is not None:
            self._blow.join()
        super().teardown()
        if self._failures:
            raise self._failures[0]
