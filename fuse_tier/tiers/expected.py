"""Content that is on its way to a tier, and will be named by a manifest when all of it is there.

Whoever asks a tier what it lacks means to bring that and to commit then, which may take longer than content
without a manifest is spared. So what was asked for belongs together, and each piece that comes shows that the
rest is still to be expected. Forgotten with the process; then the sender's next attempt brings it again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from fuse_tier.blobs import Blob

MOST_BLOBS: Final = 1 << 20
"""As many as the largest tree has files (``manifest.py``), of about 120 bytes each, whoever asks for how many."""


@dataclass(slots=True, eq=False)
class _Group:
    last_sign: float


class Expected:
    """Use from one thread, but for ``comes``, which any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST_BLOBS) -> None:
        self._clock = clock
        self._most = most
        self._groups: dict[str, _Group] = {}  # by the blob's name

    def expect(self, blobs: Collection[Blob], *, anew: bool = False) -> None:
        """These were asked for together: something new (``anew``), or a part of what was begun.

        A part that is expected already stays with what it was first asked for with, and is a sign of that. What is
        new takes over what it shares with something earlier, whose rest is not kept for its sake. Of too many, those
        are given up that had no sign for longest, but never these.
        """
        asked = _Group(self._clock())
        for blob in blobs:
            if anew:
                self._groups[blob.name] = asked
            else:
                self._groups.setdefault(blob.name, asked).last_sign = asked.last_sign
        if len(self._groups) > self._most:
            self._give_up(self._quietest(asked))

    def _quietest(self, but: _Group) -> set[_Group]:
        """Enough of them that not each call has to choose again."""
        sizes, quietest, left = Counter(self._groups.values()), set[_Group](), len(self._groups)
        del sizes[but]
        for group in sorted(sizes, key=lambda group: group.last_sign):
            if left <= self._most * 3 // 4:
                break
            quietest.add(group)
            left -= sizes[group]
        return quietest

    def _give_up(self, groups: Collection[_Group]) -> None:
        for name in [name for name, group in self._groups.items() if group in groups]:
            del self._groups[name]

    def comes(self, blob: Blob) -> None:
        """A piece begins to come, or has come."""
        group = self._groups.get(blob.name)
        if group is not None:
            group.last_sign = self._clock()

    def named(self, blobs: Collection[Blob]) -> None:
        """A manifest names these: they need no other protection."""
        for blob in blobs:
            self._groups.pop(blob.name, None)

    def names(self, silence_seconds: float) -> frozenset[str]:
        """The names of all that is still expected; what had no sign for so long is given up."""
        oldest = self._clock() - silence_seconds
        self._give_up({group for group in self._groups.values() if group.last_sign <= oldest})
        return frozenset(self._groups)
