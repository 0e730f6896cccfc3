"""Nodes that were known before the coordinator started anew, and that it has not heard of since.

What they hold stands in no answer of its yet. One that starts at the same moment, or is slow, may be the only one to
have what was saved last: for a while nobody takes what the others have for all there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fuse_tier.deadlines import Deadline


class Unheard:
    """As one node knows them. ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self._until = float("-inf")

    def begin(self, known: Iterable[str], now: float) -> None:
        """The coordinator has begun a new life; these were known, alive or gone.

        Whom the life before had not heard of either is in nothing that it told.
        """
        self._names = frozenset(known) | frozenset(self.names(now))
        self._until = now + Deadline.RETURN

    def see(self, heard: Collection[str]) -> None:
        """The coordinator has heard of these, in this life of its."""
        self._names -= frozenset(heard)

    def names(self, now: float) -> tuple[str, ...]:
        """Who may still come, ascending; nobody once they have had the time to."""
        return tuple(sorted(self._names)) if now < self._until else ()
