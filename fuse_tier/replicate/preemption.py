"""A node that is about to be taken away: what is only here goes to others while there is time.

The notice is a file that appears (a spot machine's agent writes it); an orderly stop does the same without one.
While it lasts, others see this node as one without room: they place nothing here, and make the copies that they have
here again elsewhere. If the notice goes away, all is as before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.replicate.copying import Copier
from fuse_tier.replicate.mounting import Mounting
from fuse_tier.replicate.orphans import Orphans
from fuse_tier.replicate.volumes import Volumes

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS = 0.5


class Preemption:
    """Drains one node. ``tell_others`` is called when ``is_leaving`` has changed."""

    def __init__(
        self,
        volumes: Volumes,
        mounting: Mounting,
        orphans: Orphans,
        copier: Copier,
        tell_others: Callable[[], None],
        seconds: float,
    ) -> None:
        self._volumes = volumes
        self._mounting = mounting
        self._orphans = orphans
        self._copier = copier
        self._tell_others = tell_others
        self._seconds = seconds
        self._is_ending = False
        self.is_leaving = False

    async def watch(self, notice: str) -> None:
        """Looks for the notice until cancelled."""
        while True:
            noticed = await trio.to_thread.run_sync(os.path.exists, notice)
            if noticed and not self.is_leaving:
                log.warning("node.preempted", notice=notice, seconds=self._seconds)
                metrics.error("preempted")
                await self.drain()
            elif not noticed and self.is_leaving and not self._is_ending:
                log.info("node.stays", notice=notice)
                self._leave(False)
            await trio.sleep(_LOOK_EVERY_SECONDS)

    async def end(self) -> None:
        """Drains for good: no notice, and none that goes away, changes that this node ends."""
        self._is_ending = True
        await self.drain()

    async def drain(self) -> None:
        """Gives the newest state of every volume the configured time to get where it shall be; also of those that
        nobody keeps any more, if it is only here.

        All at once. Those with fewest copies get their turns first, and of these the newest; the newest complete
        snapshot of each goes before the one that is taken now. Mounts may go on meanwhile.
        """
        self._leave(True)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain_orphans)
            for volume in self._volumes:
                if volume.has_tree and not volume.tenure.superseded:
                    nursery.start_soon(self._mounting.drain, volume, self._seconds)
        log.info("node.drained", seconds=round(trio.current_time() - started, 3))

    async def _drain_orphans(self) -> None:
        try:
            await self._orphans.drain(self._seconds)
        except OSError as error:
            metrics.error("orphans")
            log.warning("orphans.postponed", reason=str(error))

    def _leave(self, is_leaving: bool) -> None:
        self.is_leaving = is_leaving
        self._copier.drains_since_ns = time.time_ns() if is_leaving else None
        self._tell_others()
