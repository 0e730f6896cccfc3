"""Who of those that want the same content takes it from whom: a tree of peers below each node that gives it.

When many nodes restore at once and one has what they need, it gives each content once, to the first that asks. Who
asks after that is sent to one of those that have it by then, or are just getting it; each of them feeds two others. A
pure decision from what was asked for lately. Whoever is sent to a node that has nothing after all comes back, and
gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fuse_tier.blobs import Blob

_CHILDREN = 2
_MEMORY_SECONDS = 120.0
_MOST_BLOBS = 200_000


@dataclass(slots=True)
class _Tree:
    """Those that get one content, in the order in which they asked, and how many are fed by each."""

    since: float
    fed: dict[str, int] = field(default_factory=dict)


class Sharing:
    """What one node gave, and to whom. ``now`` is seconds, never less than in the call before."""

    def __init__(self) -> None:
        self._trees: dict[Blob, _Tree] = {}

    def refer(
        self, blobs: Sequence[Blob], asker: str, is_alive: Callable[[str], bool], now: float
    ) -> dict[Blob, str]:
        """For each content that the asker should take from another node, which one; the rest is ours to give."""
        self._forget(now)
        referred: dict[Blob, str] = {}
        for blob in blobs:
            tree = self._trees.setdefault(blob, _Tree(now))
            if asker in tree.fed:
                continue  # it comes back: nobody else had it
            feeder = next(
                (node for node, fed in tree.fed.items() if fed < _CHILDREN and node != asker and is_alive(node)), None
            )
            tree.fed[asker] = 0
            if feeder is not None:
                tree.fed[feeder] += 1
                referred[blob] = feeder
        return referred

    def _forget(self, now: float) -> None:
        for blob, tree in list(self._trees.items()):
            if now - tree.since < _MEMORY_SECONDS and len(self._trees) <= _MOST_BLOBS:
                return  # they are in the order in which they came
            del self._trees[blob]
