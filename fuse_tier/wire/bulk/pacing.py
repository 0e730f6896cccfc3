"""How fast content may move over this node's link, and who goes first when it may not move as fast as it could.

Replication must never starve a job's own traffic, so a node's bulk streams share one allowance each way; and a
job that waits for its files goes before copies that are made in case. ``Pacer`` decides, from times that it is
given; ``Pace`` has threads wait for it. ``Link`` is what a node has of them, and stands in the trio thread.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

_BURST_SECONDS = 0.05
_SMALLEST_BURST = 64 << 10  # bytes
_ROUNDING_SECONDS = 1e-6  # so that there is something to grant at the time that was given
_PART_SECONDS = 0.02
_SMALLEST_PART = 16 << 10
_LARGEST_PART = 8 << 20
_LONGEST_WAITER_EVERY = 8  # grants: so that nobody stands still until the other side takes it for dead
_LOOK_EVERY_SECONDS = 0.1
_GIVE_WAY_SECONDS = 2.0


class Urgency(enum.IntEnum):
    """First things first."""

    RESTORE = 0  # a job waits for it
    REPLICATION = 1


@dataclass(slots=True, eq=False)
class Ticket:
    """A wish to move some bytes."""

    urgency: Urgency
    size: int
    granted: bool = False


class Pacer:
    """A token bucket of ``rate`` bytes a second, and the queue before it. All times are its caller's, in seconds.

    Who is granted more than there is leaves a debt, so that no wish is too large; the next waits for it to be paid.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._burst = max(_SMALLEST_BURST, rate * _BURST_SECONDS)
        self._balance = self._burst
        self._as_of = now
        self._waiting: list[Ticket] = []
        self.grants = 0  # made so far

    @property
    def part(self) -> int:
        """How many bytes to ask for at a time: few enough for others to get their turn soon."""
        return int(min(_LARGEST_PART, max(_SMALLEST_PART, self._rate * _PART_SECONDS)))

    def ask(self, urgency: Urgency, size: int) -> Ticket:
        """Queues up. ``grant`` says when it is one's turn."""
        ticket = Ticket(urgency, size)
        self._waiting.append(ticket)
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        """Leaves the queue."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def grant(self, now: float) -> float | None:
        """Grants what may move now, in order; gives the time of the next grant, None when nobody waits."""
        self._balance = min(self._burst, self._balance + (now - self._as_of) * self._rate)
        self._as_of = now
        while self._waiting and self._balance > 0:
            ticket = self._next()
            self._waiting.remove(ticket)
            self._balance -= ticket.size
            self.grants += 1
            ticket.granted = True
        return now - self._balance / self._rate + _ROUNDING_SECONDS if self._waiting else None

    def _next(self) -> Ticket:
        if self.grants % _LONGEST_WAITER_EVERY == _LONGEST_WAITER_EVERY - 1:
            return self._waiting[0]
        return min(self._waiting, key=lambda ticket: ticket.urgency)  # min takes the first of equals


class Pace:
    """A pacer for threads."""

    def __init__(self, rate: float) -> None:
        self._pacer = Pacer(rate, time.monotonic())
        self._changed = threading.Condition()

    @property
    def part(self) -> int:
        """See Pacer."""
        return self._pacer.part

    def take(self, urgency: Urgency, size: int, stopped: threading.Event) -> None:
        """Returns when so many bytes may move, or soon after ``stopped`` is set."""
        with self._changed:
            ticket = self._pacer.ask(urgency, size)
            while not stopped.is_set():
                before = self._pacer.grants
                due = self._pacer.grant(time.monotonic())
                if self._pacer.grants != before:
                    self._changed.notify_all()
                if ticket.granted:
                    return
                pause = _LOOK_EVERY_SECONDS if due is None else due - time.monotonic()
                self._changed.wait(min(_LOOK_EVERY_SECONDS, max(0.0, pause)))
            self._pacer.give_up(ticket)


class Link:
    """What all bulk streams of a node share. ``bytes_per_second`` holds for each way; None: as fast as it goes."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self.out = Pace(bytes_per_second) if bytes_per_second else None
        self.into = Pace(bytes_per_second) if bytes_per_second else None
        self._restores = 0
        self._free = trio.Event()

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """While content moves that a job waits for."""
        self._restores += 1
        try:
            yield
        finally:
            self._restores -= 1
            if not self._restores:
                self._free.set()
                self._free = trio.Event()

    async def give_way(self) -> None:
        """For replication, between two sessions: lets restores go first, but not for ever."""
        with trio.move_on_after(_GIVE_WAY_SECONDS):
            while self._restores:
                await self._free.wait()
