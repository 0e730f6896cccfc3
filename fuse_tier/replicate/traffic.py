"""How fast bytes go to a tier, for people who look."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

_WINDOW_SECONDS = 10.0


@dataclass(slots=True)
class Savings:
    """What the snapshots that were copied to a tier name, beside what was sent for them.

    What was there already is not sent: content that volumes share, and that a snapshot has from the one before.
    """

    named_bytes: int = 0

    def factor(self, sent_bytes: int) -> float | None:
        """How much more was named than sent; None before anything was sent."""
        return self.named_bytes / sent_bytes if sent_bytes else None


class Meter:
    """Counts bytes; any thread may add."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, moved: int) -> None:
        """Some bytes have been moved."""
        now = time.monotonic()
        with self._lock:
            self.total += moved
            self._recent.append((now, moved))
            self._forget(now)

    def rate(self) -> float:
        """Bytes a second over the last ten seconds."""
        with self._lock:
            self._forget(time.monotonic())
            return sum(moved for _, moved in self._recent) / _WINDOW_SECONDS

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()
