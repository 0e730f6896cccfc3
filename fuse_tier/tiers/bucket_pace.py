"""How fast uploads may go, so that training does not feel them: bytes a second, and processors kept busy.

Downloads are not held back: a job waits for them. Any thread may use it.
"""

from __future__ import annotations

import threading
import time
from threading import Event
from typing import Final

_BURST_SECONDS: Final = 0.05  # what was not used for longer than that is lost


class Pace:
    """``bytes_per_second`` and ``processors`` (such as 0.5) are limits of all uploads together; None is no limit."""

    def __init__(self, bytes_per_second: float | None = None, processors: float | None = None) -> None:
        self._sending = None if bytes_per_second is None else _Budget(bytes_per_second)
        self._working = None if processors is None else _Budget(processors)
        self._thread = threading.local()

    def wait(self, count: int, stop: Event) -> None:
        """Waits until ``count`` further bytes may be sent, or ``stop`` is set."""
        delay = 0.0
        if self._sending is not None:
            delay = self._sending.take(count)
        if self._working is not None:
            used = time.thread_time()
            delay = max(delay, self._working.take(used - getattr(self._thread, "used", used)))
            self._thread.used = used
        if delay > 0:
            stop.wait(delay)


class _Budget:
    """So much a second, to be taken by anybody; whoever takes more waits for it afterwards."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._taken_until = 0.0

    def take(self, amount: float) -> float:
        """How many seconds to wait, now that so much was taken."""
        with self._lock:
            now = time.monotonic()
            self._taken_until = max(self._taken_until, now - _BURST_SECONDS) + amount / self._rate
            return self._taken_until - now
