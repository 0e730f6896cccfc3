"""Which nodes hold the copies of each volume.

A pure decision from a picture of the members and of what they have mounted; the same everywhere, because it uses
nothing else. It doesn't know what a node holds already or whether it has room: a node that refuses is passed over by
asking again without it.

Rendezvous hashing (Thaler and Ravishankar 1998), weighted by the capacity of the RAM tiers, with bounded loads
(Mirrokni, Thorup and Zadimoghaddam 2018): a node that has its share is passed over. So nodes hold about equally much,
also where there are as many volumes as nodes, and when a node comes or goes, little moves but what it wins or held.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import xxhash

from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Member

_MASK = (1 << 64) - 1
_SLACK = 1.5  # a node holds at most so much of what would be its share if all held equally much of their capacity
_NEAR = 24  # of the nodes that score best are looked at first: nearly always enough, and far fewer than all
_DRAWS = 1 << 52  # so that a draw and a half is exact in a double, and never 0 or 1
_SAME_POOL = 2


def choose_holders(
    identity: Identity, own: Member, members: Collection[Member], copies: int, *, beside: Sequence[Member] = ()
) -> tuple[str, ...]:
    """The nodes that shall hold copies of a volume that lives on ``own``, best first, as if it had the cluster for
    itself. ``beside`` are nodes that hold copies already: these come besides, apart from them, too.
    """
    able = sorted((one for one in members if one.alive and one.capacity_bytes > 0), key=lambda one: one.node)
    return _Nodes(able, copies).choose(_draw(str(identity)), (own, *beside), copies)


def volumes_of(members: Collection[Member]) -> dict[Identity, Member]:
    """The volumes that are known to be mounted; those of nodes that are gone have copies as well."""
    ordered = sorted(members, key=lambda member: (member.alive, member.node))
    return {identity: member for member in ordered for identity in member.mounted}


def choose_all(
    volumes: Mapping[Identity, Member], members: Collection[Member], copies: int
) -> dict[Identity, tuple[str, ...]]:
    """The nodes that shall hold copies of each volume, best first. ``volumes``: each with the node it lives on.

    Each place goes to the best of those that share the least with the own node and the places before: another zone
    where there is one, else another pool, else another host. Never the own node, nor one that isn't alive or has no
    room for anybody. Fewer than ``copies`` names when there are not enough nodes. (By capacity, not by free space,
    which changes all the time, and would move copies for nothing.)
    """
    able = sorted((one for one in members if one.alive and one.capacity_bytes > 0), key=lambda one: one.node)
    nodes = _Nodes(able, len(volumes) * copies)
    # In an order that has nothing to do with names: those of one job must not be served before another's.
    ordered = sorted((_draw(str(identity)), identity) for identity in volumes)
    return {identity: nodes.choose(drawn, (volumes[identity],), copies) for drawn, identity in ordered}


class _Nodes:
    """The nodes that can hold copies, and how many each has been given so far."""

    def __init__(self, able: Sequence[Member], wanted: int) -> None:
        self._able = able
        self._draws = [_draw(member.node) | 1 for member in able]
        self._is_weighted = len({member.capacity_bytes for member in able}) > 1
        capacity = sum(member.capacity_bytes for member in able)
        self._most = [int(_SLACK * wanted * member.capacity_bytes / capacity) + 1 for member in able]
        self._load = [0] * len(able)
        self._with_room = Counter((member.domain.zone, member.domain.pool) for member in able)

    def choose(self, drawn: int, apart_from: Sequence[Member], copies: int) -> tuple[str, ...]:
        """The holders of one volume. ``drawn`` is its draw."""
        scores = self._scores(drawn)
        taken = [*apart_from]
        while len(taken) < len(apart_from) + copies:
            index = self._best(scores, taken)
            if index is None:
                break
            member = self._able[index]
            taken.append(member)
            self._load[index] += 1
            if self._load[index] == self._most[index]:
                self._with_room[member.domain.zone, member.domain.pool] -= 1
        return tuple(member.node for member in taken[len(apart_from) :])

    def _best(self, scores: Sequence[float], taken: Sequence[Member]) -> int | None:
        """Of those that suit equally well, the one that scores best."""
        names = {member.node for member in taken}
        domains = [member.domain for member in taken]
        reachable = min(
            (_suits(_closeness(Domain(*pair), domains), 0) for pair, nodes in self._with_room.items() if nodes),
            default=None,
        )
        best, place = None, None
        for index in _descending(scores):
            member = self._able[index]
            if member.node in names:
                continue
            suits = _suits(_closeness(member.domain, domains), self._load[index] // self._most[index])
            if best is None or suits < best:
                best, place = suits, index
                if suits == reachable:
                    break
        return place

    def _scores(self, drawn: int) -> Sequence[float]:
        draws = [_mixed(drawn * draw & _MASK) for draw in self._draws]
        if not self._is_weighted:
            return draws
        # Weighted rendezvous: with a uniform h in (0, 1), -weight / ln(h) wins in proportion to the weight.
        return [
            -member.capacity_bytes / math.log((draw + 0.5) / _DRAWS)
            for member, draw in zip(self._able, draws, strict=True)
        ]


def _suits(closeness: int, times_full: int) -> tuple[int, int, int]:
    """Less is better. One slice is lost at once more often than one zone: so only that comes before equal loads."""
    return (closeness if closeness >= _SAME_POOL else 0, times_full, closeness)


def _descending(scores: Sequence[float]) -> Iterator[int]:
    """Indices by score. The first few are nearly always enough, and cost much less than all."""
    first = heapq.nlargest(_NEAR, range(len(scores)), key=scores.__getitem__)
    yield from first
    yield from sorted(set(range(len(scores))).difference(first), key=lambda index: -scores[index])


def _draw(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _mixed(product: int) -> int:
    """52 bits, of which each depends on all of the product's."""
    return ((product ^ (product >> 32)) * 0x9E3779B97F4A7C15 & _MASK) >> 12  # 2^64 over the golden ratio


def _closeness(domain: Domain, taken: Sequence[Domain]) -> int:
    """How much is lost together at worst: 3 the host, 2 the pool, 1 the zone, 0 nothing known."""
    return max(_shared(domain, other) for other in taken)


def _shared(one: Domain, other: Domain) -> int:
    if one.host and one.host == other.host:
        return _SAME_POOL + 1
    if one.pool and one.pool == other.pool:
        return _SAME_POOL
    return int(bool(one.zone) and one.zone == other.zone)
