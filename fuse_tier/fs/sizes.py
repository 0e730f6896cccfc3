"""How large a file will be that was only just made: as large as the one before it.

Checkpoints repeat: ``step_200/rank3.bin`` is as large as ``step_100/rank3.bin`` was. The predecessor of a path is a
path that differs in nothing but numbers; of several, the one that agrees in the most numbers from the right, because
the step is the number that grows and stands farthest to the left; of those, the newest. A path is its own
predecessor when a file of that name was there before. Only large files are remembered, and only so many.

Pure: nothing here looks at files.
"""

from __future__ import annotations

import fnmatch
import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

_NUMBER: Final = re.compile(rb"[0-9]+")
_PATTERNS: Final = 2048
_REMEMBERED: Final = 64  # of one pattern
Numbers = tuple[bytes, ...]


class Sizes:
    """What is known of sizes in one volume. ``expected`` are an operator's words: a pattern of names, and bytes."""

    def __init__(self, expected: Sequence[tuple[str, int]] = ()) -> None:
        self._expected = [(re.compile(fnmatch.translate(pattern).encode()), size) for pattern, size in expected]
        self._seen: OrderedDict[bytes, deque[tuple[Numbers, int]]] = OrderedDict()
        self.largest = max((size for _, size in expected), default=0)
        """Of all sizes that were ever seen or expected."""
        self._names: dict[bytes, int] = {}  # patterns of last parts -> of how many patterns of paths

    def may_know(self, name: bytes) -> bool:
        """Whether it is worth the while to find out the path of this name: asked for each file that is made."""
        return _NUMBER.sub(b"#", name) in self._names or bool(self._expected)

    def saw(self, path: bytes, size: int) -> None:
        """A large file was closed at a path, relative to the volume's root."""
        self.largest = max(self.largest, size)
        pattern, numbers = _take_apart(path)
        known = self._seen.get(pattern)
        if known is None:
            known = self._seen[pattern] = deque(maxlen=_REMEMBERED)
            last = _last(pattern)
            self._names[last] = self._names.get(last, 0) + 1
            if len(self._seen) > _PATTERNS:
                self._forget(self._seen.popitem(last=False)[0])
        else:
            self._seen.move_to_end(pattern)
        for entry in known:
            if entry[0] == numbers:
                known.remove(entry)
                break
        known.append((numbers, size))

    def predict(self, path: bytes) -> int:
        """The bytes that a file at a path is expected to have; 0: nobody knows."""
        pattern, numbers = _take_apart(path)
        best, most = 0, -1
        for known, size in reversed(self._seen.get(pattern, ())):
            agreeing = _common_end(known, numbers)
            if agreeing > most:
                best, most = size, agreeing
        if most >= 0:
            return best
        name = _last(path)
        return next((size for wanted, size in self._expected if wanted.fullmatch(name)), 0)

    def _forget(self, pattern: bytes) -> None:
        last = _last(pattern)
        self._names[last] -= 1
        if not self._names[last]:
            del self._names[last]


def _take_apart(path: bytes) -> tuple[bytes, Numbers]:
    return _NUMBER.sub(b"#", path), tuple(_NUMBER.findall(path))


def _last(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _common_end(one: Numbers, other: Numbers) -> int:
    agreeing = 0
    for a, b in zip(reversed(one), reversed(other), strict=True):
        if a != b:
            break
        agreeing += 1
    return agreeing
