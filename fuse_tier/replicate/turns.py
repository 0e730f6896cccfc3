"""Taking turns by urgency: a limiter whose next free place goes to whoever needs it most."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

Urgency = Callable[[], tuple[int, ...]]
"""Says how urgent it is now: less is more urgent."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    urgency: Urgency
    turn: trio.Event


class Turns:
    """At most so many at a time; of those that wait, the most urgent first, and of equals the one that came first.

    What is urgent is asked whenever a place is free: it may have changed since somebody began to wait.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[_Waiting] = []  # in the order in which they came

    @asynccontextmanager
    async def taken(self, urgency: Urgency) -> AsyncIterator[None]:
        """Waits for a turn and holds it."""
        if self._free:
            self._free -= 1
        else:
            entry = _Waiting(urgency, trio.Event())
            self._waiting.append(entry)
            try:
                await entry.turn.wait()
            except BaseException:
                if entry.turn.is_set():
                    self._pass_on()
                else:
                    self._waiting.remove(entry)
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            entry = min(self._waiting, key=lambda waiting: waiting.urgency())  # of equals the first
            self._waiting.remove(entry)
            entry.turn.set()
        else:
            self._free += 1
