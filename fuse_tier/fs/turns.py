"""A shorter way round pyfuse3's loop: requests that follow each other are answered without a turn of trio's between.

pyfuse3 takes a lock, waits until the descriptor is readable, gives the lock on and reads one request. With trio's
own that is two turns of the scheduler and two system calls for each request, more than most operations cost. Here the
lock stays with who just had it, and who has answered a request waits a moment for the next one where it is.

Nobody starves: after some milliseconds there is a full turn, for calls of the worker and for operations that
wait; and when an operation waits, the next reader has been woken already and goes on in its place. pyfuse3 takes
what stands in for trio from its variable of that name, as its asyncio mode does.
"""

from __future__ import annotations

import select
from time import monotonic
from types import TracebackType
from typing import Any, Final

import pyfuse3
import trio

_MOMENT_MILLISECONDS: Final = 1
_WITHOUT_A_TURN_SECONDS: Final = 0.005  # by so much, and a moment, may all else that this process does be delayed


class ReadingLock:
    """A lock that its last holder may take again before those who wait for it."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._woken = False
        """Whether somebody has been woken who has not looked yet."""

    async def __aenter__(self) -> None:
        while self._held:
            try:
                await self._waiting.park()
            finally:
                self._woken = False
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if not self._woken and self._waiting:
            self._woken = True
            self._waiting.unpark()


class _Lowlevel:
    """trio.lowlevel, with another ``wait_readable``."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fd = -1
        self._last_turn = 0.0

    async def wait_readable(self, fd: int) -> None:
        """Returns when there is something to read, soon after the last time without a turn, though not for ever."""
        if fd != self._fd:
            self._fd = fd
            self._poll.register(fd, select.POLLIN)
        if monotonic() - self._last_turn < _WITHOUT_A_TURN_SECONDS and self._poll.poll(_MOMENT_MILLISECONDS):
            return
        await trio.lowlevel.wait_readable(fd)
        self._last_turn = monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _ShorterTurns:
    """trio, with another lock and another ``lowlevel``."""

    Lock = ReadingLock

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def shorten_turns() -> None:
    """Makes pyfuse3 work so, from its next ``init`` on."""
    pyfuse3.trio = _ShorterTurns()  # type: ignore[attr-defined]
