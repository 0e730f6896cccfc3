"""Telling of those who are turned away: each counted, each host with its reason logged, but not a flood of lines.

A host that comes again and again for one reason is logged once a minute, with how often it came meanwhile.
Memory is bounded, however many addresses there are. Any thread may tell.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from fuse_tier import metrics

log = structlog.get_logger(__name__)

UNFINISHED: Final = "unfinished"
"""The kind of those who went away before they had shown who they are."""

_EVERY_SECONDS = 60.0
_MOST_REMEMBERED = 1024


@dataclass(slots=True)
class _Told:
    since: float
    times: int = 0


class Rejections:
    """Of one port; ``event`` is the name of its log lines."""

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], _Told] = {}  # those that came last at the end

    def __len__(self) -> int:
        """How many hosts and kinds are remembered."""
        return len(self._told)

    def note(self, kind: str, address: str, reason: str) -> None:
        """Somebody was turned away; ``kind`` is the metric's label, ``reason`` is for people.

        Who is ``UNFINISHED`` may be one of ours that was stopped: that is no warning.
        """
        metrics.connection_rejected(kind)
        with self._lock:
            before = self._times_before(address.rpartition(":")[0], kind)
        if before is not None:
            more = {"times_before": before} if before else {}
            tell = log.info if kind == UNFINISHED else log.warning
            tell(self._event, address=address, kind=kind, reason=reason, **more)

    def _times_before(self, host: str, kind: str) -> int | None:
        """How often it was not told since it was told last; None when it is not to be told now."""
        now = self._clock()
        told = self._told.pop((host, kind), None)
        if told is not None and now - told.since < _EVERY_SECONDS:
            told.times += 1
            self._told[host, kind] = told
            return None
        self._told[host, kind] = _Told(now)
        if len(self._told) > _MOST_REMEMBERED:
            del self._told[next(iter(self._told))]
        return told.times if told is not None else 0
