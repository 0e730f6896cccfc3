"""Trees that were left behind: another node has gone on with the volume, and nobody has them mounted any more.

They would keep their RAM until the volume is mounted here again. They go when a newer snapshot of the volume is
listed by another node that is alive, or in the bucket, and not at once: who has just unmounted may still look.
"""

from __future__ import annotations

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.errors import FuseTierError
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.replacing import Trees
from fuse_tier.replicate.volume import Volume

log = structlog.get_logger(__name__)

LOOK_EVERY_SECONDS = 30.0  # and what is found a second time goes


class Leftovers:
    """Gives up the trees of one node that were left behind."""

    def __init__(self, trees: Trees, membership: Membership, every_seconds: float = LOOK_EVERY_SECONDS) -> None:
        self._trees = trees
        self._membership = membership
        self._every_seconds = every_seconds

    async def keep_down(self, volume: Volume) -> None:
        """Looks until cancelled."""
        was_found = False
        while True:
            await trio.sleep(self._every_seconds)
            try:
                is_found = await self._is_left_behind(volume)
                if is_found and was_found:
                    await self._give_up(volume)
            except (FuseTierError, OSError) as error:
                metrics.error("leftovers")
                log.info("leftovers.postponed", identity=str(volume.identity), reason=str(error))
            else:
                was_found = is_found

    async def _is_left_behind(self, volume: Volume) -> bool:
        if (
            not volume.tenure.superseded
            or not volume.has_tree
            or volume.mountpoint is not None
            or volume.gate is None
        ):
            return False
        location = await self._membership.locate(volume.identity)
        newest = volume.newest.id.number if volume.newest else 0
        listed = [numbers[-1] for member, numbers in location.holders if member.alive]
        return max([*listed, *location.bucket], default=0) > newest

    async def _give_up(self, volume: Volume) -> None:
        if volume.mounting.locked():
            return
        async with volume.mounting, volume.ending, volume.evicting:
            if volume.tenure.superseded and volume.mountpoint is None and volume.gate is not None:
                by = volume.tenure.superseded
                volume.forget_tree()
                await trio.to_thread.run_sync(self._trees.clear, volume)
                log.info("volume.leftover_removed", identity=str(volume.identity), by=by)
