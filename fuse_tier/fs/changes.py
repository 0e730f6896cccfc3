"""How far a tree has changed, and the gate that keeps it still for a moment.

``counter`` grows with every change that a snapshot could see and whenever a file is opened for writing: equal
counters mean an equal tree, but for the content of files that have writers. A hold keeps changes back until it is
released or has lapsed, so whoever asked for it may die. The rule that makes both exact: an operation passes
the gate, and does (or, for an open, counts) its change, without an await in between.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from fuse_tier.deadlines import Deadline

log = structlog.get_logger(__name__)

_ANNOUNCE_AFTER_SECONDS: Final = 0.02  # files that are written side by side are closed side by side
_GENERATION_BITS: Final = 32  # a daemon counts on where none before it has been


class Changes:
    """The changes of one tree."""

    def __init__(self, generation: int) -> None:
        self.counter = (generation << _GENERATION_BITS) + 1
        self._unannounced = trio.Event()
        self._released: trio.Event | None = None
        self._lapses = 0.0  # trio's clock
        self._seconds = 0.0

    @property
    def held(self) -> bool:
        """Whether changes have to wait in ``passed``: asked first, because that costs nothing."""
        return self._released is not None

    def opened_for_writing(self) -> None:
        """Counts an open for writing, which is no change yet."""
        self.counter += 1

    def record(self) -> None:
        """Counts a change, and sees to its being announced."""
        self.counter += 1
        self._unannounced.set()

    async def unannounced(self) -> int:
        """Waits for a change and those that come right after it; gives the counter. What comes later is another."""
        await self._unannounced.wait()
        await trio.sleep(_ANNOUNCE_AFTER_SECONDS)
        self._unannounced = trio.Event()
        return self.counter

    def announce_again(self) -> None:
        """The announcement did not arrive."""
        self._unannounced.set()

    async def passed(self) -> None:
        """Waits while changes are held back; never longer than ``Deadline.HOLD_LONGER`` for each hold."""
        while (released := self._released) is not None:
            with trio.move_on_at(self._lapses) as patience:
                await released.wait()
            if patience.cancelled_caught and self._released is released:
                log.warning("hold.lapsed", seconds=self._seconds)
                self.release()

    def hold(self, seconds: float) -> None:
        """Keeps changes back for so many seconds, at most ``Deadline.HOLD_LONGER``, or until ``release``."""
        self.release()
        self._released = trio.Event()
        self._seconds = max(0.0, min(seconds, Deadline.HOLD_LONGER))
        self._lapses = trio.current_time() + self._seconds

    def release(self) -> None:
        """Lets changes go on. Does nothing when none are held."""
        released, self._released = self._released, None
        if released is not None:
            released.set()
