"""Content from wherever it is: who is asked, and in which order.

Nothing unverified is fetched: the sink hashes what lands. What one place cannot give, or gives damaged, the next is
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.errors import NotFound, TierError, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.gather import Reorder, gather, nobody_else
from fuse_tier.replicate.hopes import Hopes
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.plan import nearest
from fuse_tier.tiers.base import Fetched, Tier, TierName, no_progress


class Fetcher:
    """Fetches for one node."""

    def __init__(self, places: Places, node: str) -> None:
        self.node = node
        self._places = places

    async def fetch(
        self,
        what: object,
        blobs: Collection[Blob],
        sink: Sink,
        chosen: Chosen,
        progress: Progress = no_progress,
        *,
        stays: bool = True,
        begins: Callable[[Collection[Blob]], Progress] | None = None,
        reorder: Reorder | None = None,
        unwanted: Collection[Blob] = (),
        gone: Collection[str] = (),
        others: bool = True,
    ) -> tuple[dict[str, int], dict[Blob, TierError]]:
        """Brings blobs into a sink, from those that have the snapshot, nearest first, then from any ``others``.

        Gives the bytes that each place gave, and what nobody could give, with the last reason. What ``stays`` in the
        RAM tier others may take from here while it comes: then those that want the same feed each other. ``begins``
        is told of each part that a peer is asked for, and gives the ``progress`` of that: a stream brings all of it,
        in that order, while other places ask the sink before they bring anything. For ``reorder``, ``unwanted`` see
        ``gather``.
        Places that are ``gone`` (hopes.py) are asked as well; if one does not answer, that is no reason to hope for
        it.
        """

        async def fetch_from(place: Tier, part: Collection[Blob]) -> Fetched:
            moved = begins(part) if begins is not None and place.name is TierName.PEER else progress
            listed = chosen.manifest if place in chosen.places else None
            try:
                return await self._places.fetch(place, listed, part, sink, moved)
            except (TierUnavailable, TierRefused) as error:
                if place.place not in gone:
                    raise
                raise NotFound(f"{place.place} is gone: {error}") from error

        async def refer(place: Tier, part: Sequence[Blob]) -> Mapping[Blob, Tier]:
            return await self._places.refer(place, part)

        ranks = self._ranks(chosen) if others else [[place] for place in chosen.places]
        instead = refer if stays else nobody_else
        gathered = await gather(what, blobs, ranks, fetch_from, instead, reorder=reorder, unwanted=unwanted)
        return gathered.sources, gathered.failed

    def hopes(self, identity: Identity) -> Hopes:
        """For a volume of which content is to come."""
        return Hopes(self._places, identity)

    def _ranks(self, chosen: Chosen) -> list[list[Tier]]:
        """Who is asked, the nearest first: who has the snapshot, anybody else, the bucket."""
        membership = self._places.membership
        alive = [one for one in membership.members() if one.alive and one.node != self.node]
        peers = {self._places.peer(member).place: member for member in alive}
        holders = {place.place: self._places.current(place) for place in chosen.places}
        domains = {place: member.domain for place, member in peers.items() if place in holders}
        # Who has just gone is asked all the same, after the others: it may be back.
        near = nearest(membership.own().domain, domains) if len(domains) > 1 else (tuple(domains),)
        near = (*near, tuple(holders.keys() - domains.keys()))
        ranks = [[place for place in holders.values() if place.name is TierName.RAM]]
        for names in near:
            ranks.append([holders[name] for name in names if holders[name].name is TierName.PEER])
        others = [self._places.peer(member) for place, member in peers.items() if place not in holders]
        return [*ranks, others, [self._places.bucket] if self._places.bucket is not None else []]
