"""How fast bytes go to a tier, for people who look."""

from __future__ import annotations

import threading
import time
from collections import deque

_WINDOW_SECONDS = 10.0


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
