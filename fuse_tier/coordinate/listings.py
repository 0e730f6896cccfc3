"""Which nodes list anything of a volume: so that who asks for one volume is not told by way of all nodes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fuse_tier.identity import Identity
from fuse_tier.members import LocalFacts


class Listings:
    """Of all nodes that are known."""

    def __init__(self) -> None:
        self._facts: dict[str, LocalFacts] = {}  # of each node, as it was heard last
        self._nodes: dict[Identity, dict[str, None]] = {}  # in the order in which they were heard

    def hear(self, node: str, facts: LocalFacts) -> bool:
        """What a node says of itself; whether that may be something new of what it lists."""
        before = self._facts.get(node)
        self._facts[node] = facts
        if before is not None and before.holdings is facts.holdings and before.bucket is facts.bucket:
            return False
        here, earlier = _listed(facts), _listed(before) if before is not None else set[Identity]()
        for identity in earlier - here:
            self._drop(identity, node)
        for identity in here - earlier:
            self._nodes.setdefault(identity, {})[node] = None
        return True

    def forget_all_but(self, known: Iterable[str]) -> None:
        """Only these nodes are known any more."""
        for node in self._facts.keys() - set(known):
            for identity in _listed(self._facts.pop(node)):
                self._drop(identity, node)

    def nodes(self, identity: Identity) -> Collection[str]:
        """Those that list it in their RAM, or as their own in the bucket."""
        return self._nodes.get(identity, {}).keys()

    def identities(self) -> Collection[Identity]:
        """All volumes that any node lists."""
        return self._nodes.keys()

    def _drop(self, identity: Identity, node: str) -> None:
        del self._nodes[identity][node]
        if not self._nodes[identity]:
            del self._nodes[identity]


def _listed(facts: LocalFacts) -> set[Identity]:
    return {*facts.holdings, *facts.bucket}
