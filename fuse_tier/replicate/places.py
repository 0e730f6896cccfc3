"""Where else than in its own RAM a node can read and write: its peers and the bucket, as tiers.

It knows how to reach them, not what to do with them. A place that does not answer is named to the caller,
who decides whether that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import Member
from fuse_tier.replicate.membership import Membership
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What each place has of a volume, nearest first, and who could not be asked."""

    places: tuple[tuple[Tier, tuple[int, ...]], ...]
    silent: tuple[str, ...]
    highest: int  # snapshot number that was ever heard of, also from nodes that are gone: none is used twice
    unasked: int = 0  # the newest that nodes say they brought to who could not be asked


class PeerConnection(Tier, Protocol):
    """A peer as a tier, for as long as it is the same instance."""

    async def aclose(self) -> None:
        """Ends the connection."""
        ...


class Places:
    """Peers come and go with the membership; connections to them are kept while they stay the same instance."""

    def __init__(
        self, ram: RamTier, membership: Membership, bucket: Tier | None, connect: Callable[[Member], PeerConnection]
    ) -> None:
        self.ram = ram
        self.membership = membership
        self.bucket = bucket
        self._connect = connect
        self._peers: dict[str, tuple[str, PeerConnection]] = {}
        self._replaced: list[PeerConnection] = []  # to instances that are gone; closed at the next chance

    def peer(self, member: Member) -> Tier:
        """The tier that a peer is."""
        instance, tier = self._peers.get(member.node, ("", None))
        if tier is None or instance != member.instance:
            if tier is not None:
                self._replaced.append(tier)
            tier = self._connect(member)
            self._peers[member.node] = (member.instance, tier)
        return tier

    async def aclose(self) -> None:
        """Ends all connections."""
        await self._close_replaced()
        for _, tier in self._peers.values():
            await tier.aclose()

    async def _close_replaced(self) -> None:
        while self._replaced:
            await self._replaced.pop().aclose()

    async def holdings(self, identity: Identity) -> Holdings:
        """Asks everybody who may have snapshots of a volume."""
        await self._close_replaced()
        own = tuple(snapshot.number for snapshot in await self.ram.snapshots(identity))
        places: list[tuple[Tier, tuple[int, ...]]] = [(self.ram, own)]
        silent: list[str] = []
        unasked = 0
        location = await self.membership.locate(identity)
        places.extend((self.peer(member), numbers) for member, numbers in location.holders if member.alive)
        gone = [number for member, numbers in location.holders if not member.alive for number in numbers]
        if self.bucket is not None:
            try:
                places.append((self.bucket, await self._in_bucket(self.bucket, identity)))
            except FuseTierError as error:
                log.warning(
                    "restore.place_silent", identity=str(identity), place=self.bucket.place, reason=str(error)
                )
                silent.append(f"{self.bucket.place} ({error})")
                unasked = max(location.bucket, default=0)
        highest = max([*gone, *location.bucket, *(number for _, numbers in places for number in numbers)], default=0)
        return Holdings(tuple(places), tuple(silent), highest, unasked)

    async def _in_bucket(self, bucket: Tier, identity: Identity) -> tuple[int, ...]:
        with trio.move_on_after(Deadline.BUCKET_CALL):
            return tuple(snapshot.number for snapshot in await bucket.snapshots(identity))
        raise TierUnavailable(f"{bucket.place} did not answer within {Deadline.BUCKET_CALL:g} s")
