"""Content that is on its way to a tier, and will be named by a manifest when all of it is there.

Whoever asks a tier what it lacks means to bring that and to commit then, which may take longer than content
without a manifest is spared. So what was asked for belongs together, and each piece that comes shows that the
rest is still to be expected. Forgotten with the process; then the sender's next attempt brings it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fuse_tier.blobs import Blob


@dataclass(slots=True)
class _Group:
    last_sign: float


class Expected:
    """Use from one thread, but for ``comes``, which any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._groups: dict[Blob, _Group] = {}

    def expect(self, blobs: Collection[Blob]) -> None:
        """These were asked for together."""
        self._groups |= dict.fromkeys(blobs, _Group(self._clock()))

    def comes(self, blob: Blob) -> None:
        """A piece begins to come, or has come."""
        group = self._groups.get(blob)
        if group is not None:
            group.last_sign = self._clock()

    def named(self, blobs: Collection[Blob]) -> None:
        """A manifest names these: they need no other protection."""
        for blob in blobs:
            self._groups.pop(blob, None)

    def names(self, silence_seconds: float) -> frozenset[str]:
        """The names of all that is still expected; what had no sign for so long is given up."""
        oldest = self._clock() - silence_seconds
        self._groups = {blob: group for blob, group in self._groups.items() if group.last_sign > oldest}
        return frozenset(blob.name for blob in self._groups)
