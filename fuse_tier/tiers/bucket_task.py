"""Work in one thread, tried until it succeeds or it is clear that it will not.

Owns retries: how often, with what pauses, and until when.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierUnavailable
from fuse_tier.tiers.bucket_content import Interrupted, Stop

log = structlog.get_logger(__name__)
T = TypeVar("T")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 8.0


@dataclass(slots=True)
class Task:
    """Work in one thread. ``stop`` is set when nobody waits for it any longer."""

    patience: float  # seconds of failures in a row, after which it gives up
    stop: Stop = field(default_factory=Stop)
    _advanced: float = field(default_factory=time.monotonic)

    def advanced(self) -> None:
        """Says that something has come that need not come again: a failure after that is a first one."""
        self._advanced = time.monotonic()

    def retry(self, attempt: Callable[[], T]) -> T:
        """Repeats an attempt while it raises TierUnavailable, after growing random pauses ("full jitter").

        Raises the last TierUnavailable when patience or Deadline.BUCKET_TOTAL has run out, though not the first.
        """
        started = time.monotonic()
        longest, failing_since, tried = _FIRST_PAUSE, math.inf, started
        while True:
            try:
                return attempt()
            except TierUnavailable as error:
                failed = time.monotonic()
                if self._advanced > tried or failing_since > failed:
                    longest, failing_since = _FIRST_PAUSE, failed
                pause = random.uniform(0, longest)  # noqa: S311 - spreads load, guards nothing
                longest = min(2 * longest, _LONGEST_PAUSE)
                if failed + pause > min(failing_since + self.patience, started + Deadline.BUCKET_TOTAL):
                    raise
                metrics.bucket_retried()
                log.info("bucket.retried", error=str(error), pause_seconds=round(pause, 3))
                if self.stop.wait(pause):
                    raise Interrupted from error
                tried = time.monotonic()
