"""Whether content that nobody gives now may still come: somebody who has it is away, perhaps for a moment only.

A worker that starts again is away for seconds, and has its RAM. Who stays away for longer has died with it, as far as
anybody can tell: to wait for that one could be to wait for ever, and nothing that the job saves meanwhile is copied.
"""

from __future__ import annotations

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.identity import Identity
from fuse_tier.members import Member
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.places import Places
from fuse_tier.tiers.base import TierName


class Hopes:
    """For what is still to come of one volume. ``look`` from time to time, while something of it does not come."""

    def __init__(self, places: Places, identity: Identity) -> None:
        self._places = places
        self._identity = identity
        self._since: dict[str, float] = {}  # places that are away, and when that was seen first, by trio's clock
        self.gone: frozenset[str] = frozenset()  # of these, those that were not back in time
        self.may_come = True

    def reached(self) -> list[Member]:
        """Who is there now, and is not hoped for in vain: what such a node does not give, it does not have."""
        members = [member for member in self._places.membership.members() if member.alive]
        return [member for member in members if self._places.peer(member).place not in self.gone]

    async def look(self, chosen: Chosen) -> None:
        """Sees who is away of those that had the snapshot when it was chosen, and of those that list any now.

        A node that sees nobody else at all may have been cut off itself: it goes on hoping, and has nobody to whom it
        could copy anything.
        """
        membership = self._places.membership
        location = await membership.locate(self._identity)
        alive = {self._places.peer(member).place for member in membership.members() if member.alive}
        holders = {place.place for place in chosen.places if place.name is TierName.PEER}
        holders |= {self._places.peer(member).place for member, _ in location.holders}
        now = trio.current_time()
        self._since = {place: self._since.get(place, now) for place in holders - alive}
        self.gone = frozenset(place for place, since in self._since.items() if now - since > Deadline.RETURN)
        is_alone = not alive and self._places.bucket is None
        self.may_come = is_alone or bool(location.silent or self._since.keys() - self.gone)
