"""Where else than in its own RAM a node can read and write: its peers and the bucket, as tiers.

It knows how to reach them, not what to do with them. A place that does not answer is named to the caller,
who decides whether that matters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, FuseTierError, MalformedManifest, NotFound, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.members import Member
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.records import InBucket
from fuse_tier.tiers.base import Fetched, Tier
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

UseInBucket = Callable[[SnapshotId, Callable[[], Awaitable[Fetched]]], Awaitable[Fetched]]
"""Does work during which a snapshot in the bucket is not dropped by anybody."""
ReadersOfBucket = Callable[[Sequence[Blob]], Awaitable[dict[Blob, str]]]
"""Which nodes are reading which of these there, so that others need not."""
AskBucket = Callable[[Identity, str], Awaitable[InBucket]]
"""What the bucket lists of a volume, and the snapshot that a version, or the bucket itself, says to restore."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What each place has of a volume, nearest first, and who could not be asked."""

    places: tuple[tuple[Tier, tuple[int, ...]], ...]
    silent: tuple[str, ...]
    highest: int  # snapshot number that was ever heard of, also from nodes that are gone: none is used twice
    unasked: int = 0  # the newest that nodes say they brought to who could not be asked
    forced: int = 0  # the snapshot that a version names, which is then the one to restore
    awaited: int = 0  # the newest that was copied, and that a node has which is away, perhaps for a moment only
    away: tuple[str, ...] = ()  # nodes that have something, and are
    is_partial: bool = False  # nodes are silent of which nobody can tell what they have


class PeerConnection(Tier, Protocol):
    """A peer as a tier, for as long as it is the same instance."""

    async def refer(self, blobs: Sequence[Blob]) -> dict[Blob, str]:
        """Which other node to ask for some of its content, and to wait for."""
        ...

    async def aclose(self) -> None:
        """Ends the connection."""
        ...


class Places:
    """Peers come and go with the membership; connections to them are kept while they stay the same instance."""

    def __init__(
        self,
        ram: RamTier,
        membership: Membership,
        bucket: Tier | None,
        connect: Callable[[Member], PeerConnection],
        ask_bucket: AskBucket | None = None,
    ) -> None:
        self.ram = ram
        self.membership = membership
        self.bucket = bucket
        self.ask_bucket = ask_bucket
        self.use_in_bucket: UseInBucket | None = None
        self.readers_of_bucket: ReadersOfBucket | None = None
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

    def current(self, place: Tier) -> Tier:
        """A place as it is reached now: a peer that was started again since is another connection of that name."""
        return next((tier for _, tier in self._peers.values() if tier.place == place.place), place)

    async def fetch(
        self, place: Tier, manifest: Manifest | None, blobs: Collection[Blob], sink: Sink, progress: Progress
    ) -> Fetched:
        """As the place does; while the bucket gives content of a snapshot, nobody drops that there."""
        if place is self.bucket and self.use_in_bucket is not None and manifest is not None:
            return await self.use_in_bucket(manifest.id, lambda: place.fetch(blobs, sink, progress))
        return await place.fetch(blobs, sink, progress)

    async def refer(self, place: Tier, blobs: Sequence[Blob]) -> dict[Blob, Tier]:
        """Who else is getting content that a peer or the bucket has: those are asked instead."""
        refer: ReadersOfBucket | None = self.readers_of_bucket
        if place is not self.bucket:
            refer = next((tier.refer for _, tier in self._peers.values() if tier is place), None)
        if refer is None:
            return {}
        referred = await refer(blobs)
        alive = {member.node: member for member in self.membership.members() if member.alive}
        return {blob: self.peer(alive[node]) for blob, node in referred.items() if node in alive}

    async def aclose(self) -> None:
        """Ends all connections."""
        await self._close_replaced()
        for _, tier in self._peers.values():
            await tier.aclose()

    async def _close_replaced(self) -> None:
        while self._replaced:
            await self._replaced.pop().aclose()

    async def holdings(self, identity: Identity, version: str = "") -> Holdings:
        """Asks everybody who may have snapshots of a volume; the bucket by way of its steward (``steward.py``).

        Raises NotFound or MalformedManifest when a version is named, here or in the bucket, that cannot be restored;
        TierUnavailable when one is named here and the bucket cannot be asked.
        """
        await self._close_replaced()
        own = tuple(snapshot.number for snapshot in await self.ram.snapshots(identity))
        places: list[tuple[Tier, tuple[int, ...]]] = [(self.ram, own)]
        silent: list[str] = []
        away: list[int] = []
        unasked = forced = 0
        location = await self.membership.locate(identity)
        places.extend((self.peer(member), numbers) for member, numbers in location.holders if member.alive)
        gone = [(member, numbers) for member, numbers in location.holders if not member.alive]
        if self.bucket is None and version:
            raise ConfigError("versions are of checkpoints in a bucket, and this node has none: set `bucket.url`")
        if self.bucket is not None:
            try:
                found = await self._in_bucket(self.bucket, identity, version)
                places.append((self.bucket, found.numbers))
                forced = found.forced
            except (NotFound, MalformedManifest):
                raise
            except FuseTierError as error:
                if version:
                    raise
                log.warning(
                    "restore.place_silent", identity=str(identity), place=self.bucket.place, reason=str(error)
                )
                silent.append(f"{self.bucket.place} ({error})")
                unasked = max(location.bucket, default=0)
        lists = [numbers for _, numbers in (*gone, *places)]
        highest = max([*location.bucket, *(number for numbers in lists for number in numbers)], default=0)
        is_empty = not any(numbers for _, numbers in places)
        for member, numbers in gone:
            # What only the owner had, and nobody was ever heard to have a copy of, is not waited for: unless there is
            # nothing else, for who told us may not remember that there were copies.
            is_owner = identity in member.mounted and not is_empty
            away += [one for one in numbers if not is_owner or one <= location.copied]
        return Holdings(
            tuple(places),
            (*location.silent, *silent),
            highest,
            unasked,
            forced,
            max(away, default=0),
            tuple(f"node {member.node} (snapshot {numbers[-1]})" for member, numbers in gone),
            is_partial=bool(location.silent),
        )

    async def _in_bucket(self, bucket: Tier, identity: Identity, version: str) -> InBucket:
        patience = Deadline.BUCKET_CALL + 2 * Deadline.STEWARD
        with trio.move_on_after(patience):
            if self.ask_bucket is not None:
                return await self.ask_bucket(identity, version)
            return InBucket(tuple(snapshot.number for snapshot in await bucket.snapshots(identity)))
        raise TierUnavailable(f"{bucket.place} did not answer within {patience:g} s")
