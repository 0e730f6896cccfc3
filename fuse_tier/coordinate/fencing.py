"""Whether this coordinator may still speak: of several, only the newest does.

Each has a term, higher than that of all before it; nodes keep the highest that they have heard of, and say it with
each report. So one that was replaced while it could not know it (its process stood still, its network was cut) is
not listened to, and ends as soon as any node tells it.

A term is the time at which a coordinator began to lead, or one above that of the one before. Who hears of a higher
one while it still hears first what there is, and has decided nothing, rises above it: clocks differ, and so does what
elections remember. Later it never does, for then it is another that has taken over.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from fuse_tier.epochs import FARTHEST_AHEAD
from fuse_tier.errors import TierUnavailable


class Superseded(TierUnavailable):
    """Another coordinator has taken over from this one."""


class Fence:
    """Of one life of a coordinator. ``is_leading`` says whether it may act by the lease that it was elected with."""

    def __init__(self, term: int, is_leading: Callable[[], bool] = lambda: True) -> None:
        self.term = term
        self._farthest = term + FARTHEST_AHEAD  # of where it began: else two that are far ahead would take it farther
        self._is_leading = is_leading
        self._newer = 0
        self._superseded = trio.Event()

    def hear(self, term: int, *, is_settled: bool) -> None:
        """A node has heard of a coordinator of this term. One out of all reason is passed over."""
        if not self.term < term < self._farthest:
            return
        if not is_settled and not self._newer and self._is_leading():
            self.term = term + 1
        else:
            self._newer = max(self._newer, term)
            self._superseded.set()

    def check(self) -> None:
        """Raises Superseded when somebody else is to be asked."""
        if self._newer:
            raise Superseded(
                f"this coordinator, of term {self.term}, was replaced by one of term {self._newer}: ask that one"
            )
        if not self._is_leading():
            raise Superseded(f"this coordinator, of term {self.term}, leads no more: ask the one that does")

    async def watch(self) -> None:
        """Runs until cancelled. Raises Superseded as soon as a node has told of a newer one."""
        await self._superseded.wait()
        self.check()
