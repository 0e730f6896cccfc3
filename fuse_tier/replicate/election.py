"""Which node does what is to be done once in a cluster.

A pure decision from who is alive, the same on every node that sees the same members. Two that see others for a moment
may both do the work: so it has to be such that doing it twice harms nothing.
"""

from __future__ import annotations

from collections.abc import Collection

import xxhash


def rank(duty: str, nodes: Collection[str]) -> tuple[str, ...]:
    """The nodes in the order in which they are to do a duty: the first, and who stands in for it when it is away.

    Rendezvous hashing: when a node comes or goes, only duties that it wins or had move.
    """
    return tuple(sorted(nodes, key=lambda node: (-xxhash.xxh3_64_intdigest(f"{duty}\n{node}".encode()), node)))
