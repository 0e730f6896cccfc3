"""The beginnings of blobs whose transfers broke: kept for a while, so that another transfer goes on from there.

Files of ``incoming/`` under names that mean nothing; which blob each belongs to is known to this process alone,
so a new worker clears them away with everything else that is half done. They take the room of the whole blob:
few are kept, not for long, and none when room is short. Any thread may call; what is handed out belongs to one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from fuse_tier.blobs import Blob, Partial

SMALLEST_KEPT = 4 << 20  # bytes: less is sent again sooner than it is talked about
_MOST_KEPT = 64
_KEPT_SECONDS = 120.0  # longer than a sender pauses between two tries


@dataclass(frozen=True, slots=True)
class Kept:
    """One beginning, and the file that it is in."""

    path: str
    partial: Partial
    since: float


class Partials:
    """The beginnings that are kept now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[Blob, Kept] = {}  # oldest first

    def of(self, blob: Blob) -> Partial | None:
        """What is kept of a blob."""
        with self._lock:
            kept = self._kept.get(blob)
        return kept.partial if kept is not None else None

    def take(self, blob: Blob) -> Kept | None:
        """Hands it out: its file is the caller's."""
        with self._lock:
            return self._kept.pop(blob, None)

    def keep(self, blob: Blob, path: str, partial: Partial) -> None:
        """Takes a file over. The larger beginning stays when there are two of one blob."""
        with self._lock:
            other = self._kept.get(blob)
            if other is not None and other.partial.size >= partial.size:
                _remove(path)
                return
            if other is not None:
                _remove(self._kept.pop(blob).path)
            self._kept[blob] = Kept(path, partial, self._clock())
            while len(self._kept) > _MOST_KEPT:
                _remove(self._kept.pop(next(iter(self._kept))).path)

    def give_up(self, but: Collection[Blob] = ()) -> int:
        """Removes all but those of some blobs; gives the bytes that came free."""
        with self._lock:
            return self._remove([blob for blob in self._kept if blob not in but])

    def expire(self) -> int:
        """Removes what nobody came for; gives the bytes that came free."""
        oldest = self._clock() - _KEPT_SECONDS
        with self._lock:
            return self._remove([blob for blob, kept in self._kept.items() if kept.since <= oldest])

    def _remove(self, blobs: Collection[Blob]) -> int:
        for blob in blobs:
            _remove(self._kept.pop(blob).path)
        return sum(blob.size for blob in blobs)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
