"""Which snapshots of a volume are on their way to peers. They stay for that, but not at the price of a job's room:
what is superseded, and held by a slow peer alone, is given up, and its copy ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio


@dataclass(slots=True, eq=False)
class _Copy:
    number: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Sending:
    """Of one volume. Use from one trio thread."""

    def __init__(self) -> None:
        self._copies: list[_Copy] = []

    @property
    def numbers(self) -> frozenset[int]:
        """What is on its way, or waits for its turn."""
        return frozenset(copy.number for copy in self._copies)

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """A copy of a snapshot. It is cancelled when that is given up; then the block just ends."""
        copy = _Copy(number)
        self._copies.append(copy)
        try:
            with copy.scope:
                yield
        finally:
            self._copies.remove(copy)
            copy.ended.set()

    async def stop(self, number: int) -> None:
        """Ends the copies of a snapshot, and returns when nobody reads its content for them any more."""
        copies = [copy for copy in self._copies if copy.number == number]
        for copy in copies:
            copy.scope.cancel()
        for copy in copies:
            await copy.ended.wait()
