"""Whether a local volume is still this node's, and under which epoch it numbers its snapshots.

A node that was counted out for a while may find that another goes on with what it has mounted: then nothing that is
saved here counts any more (``succession.py``). If nobody does, it goes on itself, under another epoch, and what it
saved last is saved again under that: else an owner in between, of whom nobody has heard, could pass for the newest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from fuse_tier.epochs import epoch_of
from fuse_tier.errors import FuseTierError
from fuse_tier.replicate.membership import Membership, mounted_on
from fuse_tier.replicate.volume import Volume

log = structlog.get_logger(__name__)


class Ownership:
    """Of the volumes of one node. ``supersede`` is told of a volume that another node goes on with, and of which."""

    def __init__(self, membership: Membership, supersede: Callable[[Volume, str], Awaitable[None]]) -> None:
        self._membership = membership
        self._supersede = supersede

    async def keep(self, volume: Volume) -> None:
        """Keeps up what a mounted volume is known under, until cancelled."""
        while True:
            news = volume.news.version
            if volume.mountpoint is not None:
                await self.is_ours(volume)
            await volume.news.wait_beyond(news)

    async def is_ours(self, volume: Volume) -> bool:
        """Whether this node is to keep the volume's copies now: it has all of it, and nobody else has it mounted.

        A node that was counted out and is back may find that another was granted what it still has mounted.
        """
        if volume.tenure.superseded or volume.coming is not None:
            return False
        membership, identity = self._membership, volume.identity
        others = sorted(mounted_on(membership, identity))
        if identity not in membership.mounted():
            return not others
        if others or membership.is_doubtful(identity) or volume.tenure.numbering.is_exhausted:
            above = epoch_of(volume.tenure.numbering.highest) if volume.tenure.numbering.is_exhausted else 0
            try:
                confirmed = await membership.confirm(identity, above)
            except FuseTierError as error:
                log.info("volume.not_confirmed", identity=str(identity), reason=str(error))
                return False
            if not confirmed:
                await self.succeeded(volume, others[0] if others else "another node")
                return False
        if volume.mountpoint is not None:
            await volume.renew(membership.epoch(identity))
        return True

    async def succeeded(self, volume: Volume, by: str) -> None:
        """Another node goes on with a volume."""
        await self._supersede(volume, by)
