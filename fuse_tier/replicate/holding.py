"""For how long a job is kept from changing its tree while that is read, and how soon again.

Long enough: twice as long as the tree took to read just before. Never longer than ``Deadline.HOLD_LONGER``. By itself
never for more than a tenth of the job's time: a tree that could not be read in time is left to its job for nine times
as long before that is tried again (and settling.py waits as long after a hold that was of use). Who waits for a
snapshot need not wait for that, as long as the next hold is longer than what was too short.

Pure: who calls has the clock.
"""

from __future__ import annotations

from typing import Final

from fuse_tier.deadlines import Deadline

LEFT_ALONE: Final = 9.0  # times as long as it was held a job goes on
_AMPLE: Final = 2.0  # times as long as reading took, or as was too little
_LONGER: Final = 1.1  # times as long as was too little may be enough


class Holding:
    """Of one volume. Times are seconds."""

    def __init__(self) -> None:
        self._seconds = Deadline.HOLD
        self._not_before = float("-inf")
        self._too_short = 0.0

    def next(self, now: float, reading: float, *, is_awaited: bool = False) -> float:
        """For how long to hold a tree now that took so long to read; 0 when it may not be held yet.

        ``is_awaited``: somebody waits for the snapshot.
        """
        seconds = min(max(self._seconds, _AMPLE * reading), Deadline.HOLD_LONGER)
        if now >= self._not_before or (is_awaited and seconds > _LONGER * self._too_short):
            return seconds
        return 0.0

    def not_for(self, now: float) -> float:
        """How long it may not be held yet."""
        return max(0.0, self._not_before - now)

    def was_of_use(self, seconds: float) -> None:
        """The tree was read in so much time, in which it was held."""
        self._seconds = min(max(Deadline.HOLD, _AMPLE * seconds), Deadline.HOLD_LONGER)

    def was_in_vain(self, now: float, seconds: float) -> None:
        """It was held for so long, and could not be read."""
        self._seconds = min(max(Deadline.HOLD, _AMPLE * seconds), Deadline.HOLD_LONGER)
        self._too_short = seconds
        self._not_before = now + LEFT_ALONE * seconds
