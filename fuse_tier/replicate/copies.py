"""Where copies of a volume's snapshots are, as this node's worker knows it: told by those who verified them.

Nothing of it is kept on disk: whoever copies tells it again after a restart.
"""

from __future__ import annotations

from collections.abc import Collection

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.tiers.base import TierName


class Copies:
    """Which places have which snapshot of a volume. Use from one trio thread."""

    def __init__(self, identity: Identity, wanted: int, news: Broadcast) -> None:
        self.newest: Manifest | None = None
        self.verified = 0  # the newest snapshot that was verified elsewhere, as far as this process has seen; 0: none
        self.is_listed = True  # the newest snapshot, in RAM: unless content of it was given up
        self._identity = identity
        self._wanted = max(1, wanted)
        self._news = news
        self._held: dict[tuple[TierName, str], int] = {}
        self._blobs: dict[int, frozenset[Blob]] = {}  # of the newest snapshots, to tell where a file is

    def begin_again(self, newest: Manifest | None, *, is_listed: bool) -> None:
        """The tree was made anew: who has what of it is not known yet."""
        self.verified = 0
        self.is_listed = is_listed
        self._held.clear()
        self._blobs.clear()
        self.newest = None
        if newest is not None:
            self.follow(newest)

    def follow(self, newest: Manifest) -> None:
        """There is a newer one. Older content is kept in mind until this one is on every tier that had an older."""
        self.newest = newest
        self._blobs[newest.id.number] = newest.blobs
        wanted = {self.durable(tier, self._wanted) for tier in TierName} | {newest.id.number}
        self._blobs = {number: blobs for number, blobs in self._blobs.items() if number >= min(wanted - {0})}

    # ---- told by who copies ----

    def stored(self, tier: TierName, place: str, number: int) -> None:
        """A copy of a snapshot has been verified at a place."""
        self._held[tier, place] = max(number, self._held.get((tier, place), 0))
        self.verified = max(self.verified, number)
        if self.newest is not None and self.newest.id.number == number:
            metrics.durable(str(self._identity), tier.value, self.newest.created_ns)
        self._news.announce()

    def lost(self, tier: TierName, place: str) -> None:
        """A place has lost what it had."""
        if self._held.pop((tier, place), None) is not None:
            self._news.announce()

    def dropped_from_ram(self, number: int) -> None:
        """The RAM tier lists a snapshot no more, because room was short; the tree is as it was."""
        if self.newest is not None and self.newest.id.number == number:
            self.is_listed = False

    # ---- asked by everybody ----

    def held(self, tier: TierName) -> dict[str, int]:
        """The newest snapshot that each place of a tier has, by place."""
        return {place: number for (kind, place), number in self._held.items() if kind is tier}

    def durable(self, tier: TierName, copies: int = 1, *, apart_from: Collection[str] = ()) -> int:
        """The newest snapshot that is on a tier, for peers in at least so many copies, those at some places not
        counted; 0: none.
        """
        if tier is TierName.RAM:
            return self.newest.id.number if self.newest else 0
        held = self.held(tier)
        numbers = sorted((number for place, number in held.items() if place not in apart_from), reverse=True)
        return numbers[copies - 1] if len(numbers) >= copies else 0

    def is_replicated(self, number: int) -> bool:
        """Whether as many peers as are wanted have a snapshot, or a later one."""
        return self.durable(TierName.PEER, self._wanted) >= number

    def in_bucket(self) -> int:
        """The newest snapshot that this node knows to be in the bucket; 0: none."""
        return self.durable(TierName.BUCKET)

    def newest_beyond_bucket(self) -> bool:
        """Whether there is a snapshot that the bucket has not."""
        return self.newest is not None and self.in_bucket() < self.newest.id.number

    def blobs_in_bucket(self) -> frozenset[Blob]:
        """Content of which this node knows that the bucket has it."""
        return self._blobs.get(self.in_bucket(), frozenset())

    def is_elsewhere(self, blob: Blob) -> bool:
        """Whether a snapshot with this content is verified on another tier."""
        return any(blob in self._blobs.get(self.durable(tier), ()) for tier in (TierName.PEER, TierName.BUCKET))

    # ---- for people ----

    def state(self) -> str:
        """The tiers that have the whole newest snapshot, or ``sealed`` for none yet."""
        number = self.newest.id.number if self.newest else 0
        tiers = [tier for tier in TierName if number and self.durable(tier, self._wanted) >= number]
        return ",".join(tier for tier in tiers if self.is_listed or tier is not TierName.RAM) or "sealed"

    def state_of(self, blob: Blob) -> str:
        """The tiers that have a file's content as part of a snapshot, or ``sealed`` for none yet."""
        have = []
        for tier in TierName:
            blobs = self._blobs.get(self.durable(tier, self._wanted))
            if blobs is not None and blob in blobs:
                have.append(tier.value)
        return ",".join(have) or "sealed"
