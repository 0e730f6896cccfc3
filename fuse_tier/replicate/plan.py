"""From where each rank of a job gets its files: a restore's plan, as a value. Pure.

It is made of the decisions that restores take as they go: whom to ask first (``nearest``, ``restore.py``), and who of
several that want the same takes it from whom (``sharing.py``). What it adds is what a real restore leaves to speed:
of those that are equally near each gives as much as its load allows, rather than as much as it can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fuse_tier.blobs import Blob
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Domain
from fuse_tier.replicate.sharing import Sharing
from fuse_tier.tiers.base import TierName

PIECE_BYTES = 64 << 20  # of what several give together each gives so much at a time


def nearest(own: Domain, domains: Mapping[str, Domain]) -> tuple[tuple[str, ...], ...]:
    """Nodes in the order in which they are asked, those together that are equally near: of the own zone first.

    A zone of which nothing is known is no nearer than another.
    """
    near = tuple(node for node, domain in domains.items() if own.zone and domain.zone == own.zone)
    far = tuple(node for node in domains if node not in near)
    return tuple(filter(None, (near, far)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A snapshot that is to come back on a node, for the volume ``taker``. Several nodes may want one."""

    snapshot: SnapshotId
    size: int
    at: str
    domain: Domain
    holders: Mapping[str, Domain]  # live nodes whose RAM has it
    is_in_bucket: bool
    taker: Identity


@dataclass(frozen=True, slots=True)
class Source:
    """What one place gives. ``depth`` counts the nodes between it and who had the files before."""

    tier: TierName
    node: str  # empty: the bucket
    size: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Leg:
    """How one of those that are wanted gets there; without sources not at all."""

    wanted: Wanted
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """In the order of identities and nodes."""

    legs: tuple[Leg, ...]

    @property
    def impossible(self) -> tuple[Wanted, ...]:
        """What nobody has."""
        return tuple(leg.wanted for leg in self.legs if not leg.sources)

    @property
    def given(self) -> Mapping[str, int]:
        """Bytes that each node sends over the network, and the bucket (an empty name)."""
        found: defaultdict[str, int] = defaultdict(int)
        for leg in self.legs:
            for source in leg.sources:
                if source.tier is not TierName.RAM:
                    found[source.node] += source.size
        return dict(found)

    @property
    def depth(self) -> int:
        """Of the deepest tree of peers."""
        return max((source.depth for leg in self.legs for source in leg.sources), default=0)

    def seconds(self, node_bytes_per_second: float, bucket_bytes_per_second: float) -> float:
        """How long it takes at best, with networks of these speeds: until the busiest link has done its part."""
        received: defaultdict[str, int] = defaultdict(int)
        for leg in self.legs:
            received[leg.wanted.at] += sum(one.size for one in leg.sources if one.tier is not TierName.RAM)
        sent = self.given
        busiest = max([*received.values(), *(size for node, size in sent.items() if node)], default=0)
        return max(busiest / node_bytes_per_second, sent.get("", 0) / bucket_bytes_per_second)


def plan(wanted: Iterable[Wanted]) -> Plan:
    """For each rank the nearest sources: own RAM, else the nearest peers that have it, else the bucket.

    Whoever has it gives it once, to the first that wants it; the others take it from that one, and so on, in a tree.
    So the bucket reads nothing twice.
    """
    load: defaultdict[str, int] = defaultdict(int)
    trees: dict[SnapshotId, Sharing] = {}
    depths: dict[tuple[SnapshotId, str], int] = {}
    legs: dict[tuple[SnapshotId, str], Leg] = {}
    ordered = sorted(
        wanted, key=lambda one: (-one.size, one.snapshot, one.at)
    )  # large ones first: small ones even out
    for one in ordered:
        sources: tuple[Source, ...] = ()
        if one.at in one.holders:
            sources = (Source(TierName.RAM, one.at, one.size),)
        elif one.holders or one.is_in_bucket:
            content = Blob(one.snapshot.number.to_bytes(16, "big"), one.size)
            referred = trees.setdefault(one.snapshot, Sharing()).refer([content], one.at, lambda _: True, 0.0)
            feeder = referred.get(content)
            depth = 0 if feeder is None else depths[one.snapshot, feeder] + 1
            depths[one.snapshot, one.at] = depth
            if feeder is None:
                sources = _from_who_has_it(one, load)
            else:
                sources = (Source(TierName.PEER, feeder, one.size, depth),)
                load[feeder] += one.size
        legs[one.snapshot, one.at] = Leg(one, sources)
    return Plan(tuple(leg for _, leg in sorted(legs.items(), key=lambda item: item[0])))


def _from_who_has_it(wanted: Wanted, load: dict[str, int]) -> tuple[Source, ...]:
    if not wanted.holders:
        return (Source(TierName.BUCKET, "", wanted.size),)
    shares = _share(wanted.size, nearest(wanted.domain, wanted.holders)[0], load)
    return tuple(Source(TierName.PEER, node, size) for node, size in sorted(shares.items()))


def _share(size: int, nodes: Collection[str], load: dict[str, int]) -> dict[str, int]:
    """A piece at a time from whoever has least to give."""
    shares: dict[str, int] = {}
    left = size
    while left > 0 or not shares:
        node = min(sorted(nodes), key=lambda name: load[name])
        piece = min(PIECE_BYTES, left)
        shares[node] = shares.get(node, 0) + piece
        load[node] += piece
        left -= piece
    return shares
