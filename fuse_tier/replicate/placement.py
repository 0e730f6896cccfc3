"""Which nodes hold the copies of a volume.

A pure decision from a picture of the members; the same everywhere, because it uses nothing else. It doesn't
know what a node holds already or whether it has room: a node that refuses is passed over by asking for more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import xxhash

from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Member

_DRAWS = 1 << 52  # so that a draw and a half is exact in a double, and never 0 or 1


def choose_holders(identity: Identity, own: Member, members: Collection[Member], copies: int) -> tuple[str, ...]:
    """The nodes that shall hold copies of a volume that lives on ``own``, best first.

    Rendezvous hashing (Thaler and Ravishankar 1998), weighted by the capacity of the RAM tiers: when a node
    comes or goes, only the volumes it wins or held move. (Not by free space, which changes all the time, and
    would move copies for nothing.) Each place goes to the best of those that share the least with the own
    node and the places before: another zone where there is one, else another pool, else another host.

    Never the own node, nor one that isn't alive or has no room for anybody; fewer than ``copies`` names when
    there are not enough nodes. The answer for fewer copies is the beginning of the answer for more.
    """
    ranked = sorted(
        (member for member in members if member.alive and member.capacity_bytes > 0 and member.node != own.node),
        key=lambda member: (-_score(identity, member), member.node),
    )
    taken = [own.domain]
    chosen: list[str] = []
    while ranked and len(chosen) < copies:
        # min takes the first of equals, which is the one that scores best.
        best = min(ranked, key=lambda member: _closeness(member.domain, taken))
        ranked.remove(best)
        chosen.append(best.node)
        taken.append(best.domain)
    return tuple(chosen)


def _score(identity: Identity, member: Member) -> float:
    """Weighted rendezvous: with a uniform hash h in (0, 1), -weight / ln(h) wins in proportion to the weight."""
    drawn = xxhash.xxh3_64_intdigest(f"{identity}\n{member.node}".encode())
    return -member.capacity_bytes / math.log(((drawn >> 12) + 0.5) / _DRAWS)


def _closeness(domain: Domain, taken: Iterable[Domain]) -> int:
    """How much is lost together at worst: 3 the host, 2 the pool, 1 the zone, 0 nothing known."""
    return max(_shared(domain, other) for other in taken)


def _shared(one: Domain, other: Domain) -> int:
    if one.host and one.host == other.host:
        return 3
    if one.pool and one.pool == other.pool:
        return 2
    return int(bool(one.zone) and one.zone == other.zone)
