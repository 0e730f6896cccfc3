"""Telling any number of tasks that something has changed."""

from __future__ import annotations

import trio


class Broadcast:
    """A version that grows, and a way to wait until it has: no change between two waits is missed."""

    def __init__(self) -> None:
        self.version = 0
        self._changed = trio.Event()

    def announce(self) -> None:
        """Wakes everybody who waits."""
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait_beyond(self, version: int) -> int:
        """Returns the version as soon as it is greater than ``version``."""
        while self.version <= version:
            await self._changed.wait()
        return self.version
