"""Which configurations are to be looked at: each at most once, the one that waits longest first.

One that failed comes again by itself, ever more seldom, and at once when something of it changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import trio

_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0


class Queue:
    """Of uids."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._changed = trio.Event()

    def add(self, uids: Iterable[str]) -> None:
        """They are to be looked at, now."""
        for uid in uids:
            if uid not in self._due or self._due[uid] > trio.current_time():
                self._due[uid] = trio.current_time()
        self._changed.set()

    def __len__(self) -> int:
        return len(self._due)

    async def next(self) -> str:
        """The one that is due, when there is one; it is in the queue no longer."""
        while True:
            uid = min(self._due, key=self._due.__getitem__, default=None)
            now = trio.current_time()
            if uid is not None and self._due[uid] <= now:
                del self._due[uid]
                return uid
            self._changed = trio.Event()
            with trio.CancelScope(deadline=math.inf if uid is None else self._due[uid]):
                await self._changed.wait()

    def again(self, uid: str, least: float = 0.0) -> None:
        """It failed, and is not to be tried within ``least`` seconds."""
        pause = self._pauses.get(uid, _FIRST_PAUSE_SECONDS)
        self._pauses[uid] = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        self._due.setdefault(uid, trio.current_time() + max(pause, least))
        self._changed.set()

    def later(self, uid: str, seconds: float) -> None:
        """It is to be looked at then, unless something of it changes before."""
        self._due.setdefault(uid, trio.current_time() + seconds)
        self._changed.set()

    def done(self, uid: str) -> None:
        """It went well."""
        self._pauses.pop(uid, None)
