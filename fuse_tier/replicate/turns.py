"""Taking turns by urgency: a limiter whose next free place goes to whoever needs it most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

Urgency = Callable[[], tuple[int, ...]]
"""Says how urgent it is now: less is more urgent."""


@dataclass(slots=True, eq=False)
class _Turn:
    urgency: Urgency
    place: str
    patience: float
    begun: trio.Event = field(default_factory=trio.Event)
    late: float = math.inf  # by trio's clock
    waiting: trio.CancelScope = field(default_factory=trio.CancelScope)  # until somebody who has a turn is late


class Turns:
    """At most ``count`` at a time, and ``at_place`` of them at one place; of those that wait and could begin, the
    most urgent first, and of equals the one that came first.

    Whoever takes longer than was said at the begin is late, and does not count in the whole any more, so that what is
    slow holds up nothing elsewhere; up to ``late`` of them, so that there is an end to how many there are.

    What is urgent is asked whenever a place is free: it may have changed since somebody began to wait.
    """

    def __init__(self, count: int, *, at_place: int | None = None, late: int = 0) -> None:
        self._count = count
        self._at_place = at_place or count
        self._most_late = late
        self._waiting: list[_Turn] = []  # in the order in which they came
        self._begun: list[_Turn] = []

    @asynccontextmanager
    async def taken(self, urgency: Urgency, place: str = "", patience: float = math.inf) -> AsyncIterator[None]:
        """Waits for a turn at a place and holds it; it is late when it is held for longer than ``patience``."""
        turn = _Turn(urgency, place, patience)
        self._waiting.append(turn)
        self._admit()
        try:
            while not turn.begun.is_set():
                with trio.CancelScope(deadline=self._next_late()) as turn.waiting:
                    await turn.begun.wait()
                self._admit()
            yield
        finally:
            (self._begun if turn.begun.is_set() else self._waiting).remove(turn)
            self._admit()

    def _admit(self) -> None:
        while able := self._able():
            turn = min(able, key=lambda waiting: waiting.urgency())  # of equals the first
            self._waiting.remove(turn)
            self._begun.append(turn)
            turn.late = trio.current_time() + turn.patience
            turn.begun.set()
        for turn in self._waiting:
            turn.waiting.deadline = self._next_late()

    def _able(self) -> list[_Turn]:
        late = sum(turn.late <= trio.current_time() for turn in self._begun)
        if len(self._begun) - min(late, self._most_late) >= self._count:
            return []
        busy = Counter(turn.place for turn in self._begun)
        return [turn for turn in self._waiting if busy[turn.place] < self._at_place]

    def _next_late(self) -> float:
        now = trio.current_time()
        return min((turn.late for turn in self._begun if turn.late > now), default=math.inf)
