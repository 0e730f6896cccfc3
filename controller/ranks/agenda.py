"""What is to be looked at, each thing once: at once, or at a moment. Pure: time comes in."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Agenda(Generic[Thing]):
    """Things in the order of their moments; of one that was put in twice the earlier moment counts."""

    def __init__(self) -> None:
        self._moments: dict[Thing, float] = {}
        self._queue: list[tuple[float, int, Thing]] = []  # those that were superseded included
        self._order = itertools.count()

    def put(self, thing: Thing, moment: float = float("-inf")) -> None:
        """It is to be looked at at that moment; at once, if none is given."""
        if moment < self._moments.get(thing, float("inf")):
            self._moments[thing] = moment
            heapq.heappush(self._queue, (moment, next(self._order), thing))

    def take(self, now: float) -> Thing | None:
        """One whose moment has come, which is not in here any more then; None: there is none yet."""
        if self.next_at > now:
            return None
        _, _, thing = heapq.heappop(self._queue)
        del self._moments[thing]
        return thing

    @property
    def next_at(self) -> float:
        """The moment of the next one; endless: there is nothing in here."""
        while self._queue and self._moments.get(self._queue[0][2]) != self._queue[0][0]:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else float("inf")
