"""Whose word counts of a volume: each ownership of it has an epoch, the upper part of its snapshots' numbers.

Whoever is granted a volume gets an epoch above all that were granted of it before, and numbers its snapshots within
that. So wherever the highest number is the newest (restoring, retention, listings, records of checkpoints) an
ownership that has ended can never pass for the one after it, however long a node goes on that was cut off. Snapshots
from before there were epochs have numbers below ``SNAPSHOTS``: they are of epoch 0.

An epoch is the time of the grant in seconds, by a clock that never goes back behind an epoch that was heard of
(Kulkarni and others, *Logical Physical Clocks*, 2014). So who grants needs no memory: a coordinator that starts
again with nothing, and hears of nobody, is above all that was granted before by the time alone.
"""

from __future__ import annotations

import time
from typing import Final

SNAPSHOTS: Final = 10_000_000
"""How many numbers an epoch has: a snapshot a second for 115 days; who needs more is granted another epoch."""

HIGHEST: Final = (1 << 63) // SNAPSHOTS - 1

FARTHEST_AHEAD: Final = 10 * 365 * 24 * 3600
"""Ten years: no clock is taken along by an epoch that is farther ahead. One node's nonsense is not everybody's."""

_BEGIN: Final = 1_767_225_600  # 2026-01-01 UTC: numbers stay below 2**53, which is exact everywhere, until 2054


def epoch_of(number: int) -> int:
    """The ownership that a snapshot is of; 0 for one from before there were epochs."""
    return number // SNAPSHOTS


def number_before(epoch: int) -> int:
    """The number above which an ownership numbers its snapshots."""
    return epoch * SNAPSHOTS


def number_after(epoch: int) -> int:
    """The number that an ownership's snapshots stay below."""
    return (epoch + 1) * SNAPSHOTS


def from_the_time() -> int:
    """The epoch that this machine's clock stands at; at least 1."""
    return max(1, int(time.time()) - _BEGIN)


def is_in_reason(epoch: int) -> bool:
    """Whether clocks that are wrong as clocks are can explain it."""
    return epoch <= from_the_time() + FARTHEST_AHEAD


class EpochClock:
    """Goes on as time does, from where it began, and leaps forward beyond what it hears of.

    ``now`` is monotonic seconds, never less than in the call before.
    """

    def __init__(self, epoch: int, now: float) -> None:
        self._base = epoch - now

    def read(self, now: float) -> int:
        """The epoch of this moment."""
        return int(self._base + now)

    def hear(self, epoch: int, now: float) -> None:
        """Somebody knows of an epoch: from now on this clock is above it, unless it is out of all reason."""
        if self.read(now) <= epoch <= self.read(now) + FARTHEST_AHEAD:
            self._base = epoch + 1 - now
