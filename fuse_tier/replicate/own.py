"""What a node knows of itself and tells others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

from fuse_tier.identity import Identity
from fuse_tier.members import Domain, LocalFacts, Member, Report
from fuse_tier.restarts import Resumption
from fuse_tier.wire.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class OwnNode:
    """One worker's life of this node."""

    node: str
    instance: str
    cluster: str
    control: str  # HOST:PORT
    bulk: str  # HOST:PORT
    domain: Domain
    facts: Callable[[], LocalFacts]
    tls: TlsFiles | None

    def member(self, claimed: Set[Identity]) -> Member:
        """This node, with what was claimed for it."""
        facts = self.facts()
        return Member(
            node=self.node,
            instance=self.instance,
            control=self.control,
            bulk=self.bulk,
            alive=True,
            capacity_bytes=facts.capacity_bytes,
            free_bytes=facts.free_bytes,
            domain=self.domain,
            mounted=facts.mounted | claimed,
        )

    def report(
        self,
        claimed: Set[Identity],
        epochs: Mapping[Identity, int],
        resumed: Mapping[Identity, Resumption],
        clock: int,
        sequence: int,
        *,
        leaving: bool,
    ) -> Report:
        """Everything that the coordinator wants to know."""
        facts = self.facts()
        mounted = facts.mounted | claimed
        known = {one: max(epochs.get(one, 0), facts.epochs.get(one, 0)) for one in mounted}
        return Report(
            node=self.node,
            instance=self.instance,
            sequence=sequence,
            leaving=leaving,
            control=self.control,
            bulk=self.bulk,
            facts=replace(facts, mounted=mounted, epochs=known, resumed=_latest(facts.resumed, resumed)),
            clock=max(clock, *known.values()) if known else clock,
            domain=self.domain,
        )


def _latest(told: Mapping[Identity, Resumption], joined: Mapping[Identity, Resumption]) -> dict[Identity, Resumption]:
    """What volumes have gone on from; what one has joined a moment ago is not told by it yet."""
    newer = {
        identity: one
        for identity, one in joined.items()
        if (before := told.get(identity)) is None or before.restart < one.restart
    }
    return {**told, **newer}
