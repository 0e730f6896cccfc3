"""Taking turns by urgency: a limiter whose next free place goes to whoever needs it most."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Turns:
    """At most so many at a time; of those that wait, the most urgent first, and of equals the one that came first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, trio.Event]] = []

    @asynccontextmanager
    async def taken(self, urgency: int) -> AsyncIterator[None]:
        """Waits for a turn and holds it; less is more urgent."""
        if self._free:
            self._free -= 1
        else:
            turn = trio.Event()
            entry = (urgency, next(self._order), turn)
            heapq.heappush(self._waiting, entry)
            try:
                await turn.wait()
            except BaseException:
                if turn.is_set():
                    self._pass_on()
                else:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1
