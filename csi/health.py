"""Whether volumes answer: a look through each mount, which asks its daemon, and waits for a deadline at most.

A look that is not answered stays in the kernel with its thread. So there is one at most for each mount, however often
it is asked for; who asks meanwhile waits for the same one.
"""

from __future__ import annotations

import os
from typing import Final

import structlog
import trio

from csi.driver import Driver, ours_at
from csi.records import Publication, Records
from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError

log = structlog.get_logger(__name__)

_EVERY_SECONDS: Final = 30.0
_LOOK_AGAIN_SECONDS: Final = 0.02


class _Look:
    """One, under way or done."""

    def __init__(self) -> None:
        self.begun = trio.current_time()
        self.has_begun = False
        self.answer: str | None = None


class Health:
    """Of the volumes of one node. ``run`` belongs in a nursery."""

    def __init__(self, driver: Driver, records: Records) -> None:
        self._driver = driver
        self._records = records
        self._looks: dict[str, _Look] = {}
        self._unwell: dict[str, str] = {}  # by volume id, as the log has said it

    async def run(self) -> None:
        """Looks at all volumes again and again, and says what has changed."""
        while True:
            await trio.sleep(_EVERY_SECONDS)
            await self.examine_all()

    async def examine_all(self) -> None:
        """Looks at all volumes once, at the same time."""
        found: dict[str, str] = {}

        async def examine(known: Publication) -> None:
            trouble = await self.trouble(known)
            if trouble:
                found[known.volume_id] = trouble

        async with trio.open_nursery() as nursery:
            for known in await trio.to_thread.run_sync(list, self._records):
                nursery.start_soon(examine, known)
        for volume_id in found.keys() - self._unwell.keys():
            log.warning("volume.unwell", volume=volume_id, reason=found[volume_id])
        for volume_id in self._unwell.keys() - found.keys():
            log.info("volume.well", volume=volume_id)
        self._unwell = found
        metrics.unwell(len(found))

    async def trouble(self, known: Publication) -> str:
        """What is wrong with a published volume, and what to do; empty while it is well."""
        path = known.target
        if ours_at(path) is None:
            return f"{path} is not mounted: delete {known.owner}; the next pod of that name gets its files"
        try:
            mounted = await self._driver.find(path)
        except FuseTierError:
            mounted = None  # the supervisor is started anew; the mount speaks for itself
        if mounted is not None and mounted.reason:
            return f"its mount is dead: {mounted.reason}: delete {known.owner}"
        reason = await self.look_through(path)
        return f"its daemon does not answer: {reason}: see the log of the fuse container" if reason else ""

    async def look_through(self, path: str) -> str:
        """Why the mount at ``path`` does not answer as ours does; empty when it does."""
        look = self._looks.get(path)
        if look is not None:
            return await self._wait_for(look)
        look = self._looks[path] = _Look()

        def work() -> None:
            look.has_begun = True
            try:
                look.answer = _look(path)
            finally:
                self._looks.pop(path, None)

        try:
            with trio.move_on_after(Deadline.CHANNEL_CALL):
                await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        finally:
            if not look.has_begun:  # who asked went away before that
                self._looks.pop(path, None)
        return _said_by(look)

    async def _wait_for(self, look: _Look) -> str:
        """Of a look that began earlier: until the deadline from its beginning."""
        with trio.move_on_at(look.begun + Deadline.CHANNEL_CALL):
            while look.answer is None:  # noqa: ASYNC110 - it ends in a thread that nobody waits for
                await trio.sleep(_LOOK_AGAIN_SECONDS)
        return _said_by(look)


def _said_by(look: _Look) -> str:
    if look.answer is None:
        return f"no answer for {max(Deadline.CHANNEL_CALL, trio.current_time() - look.begun):.0f} s"
    return look.answer


def _look(path: str) -> str:
    try:
        # Attributes may come from the kernel's cache; this is asked of the daemon.
        os.statvfs(path)
        found = ours_at(path)
        if found is None or os.stat(path).st_dev != found.device:
            return "another filesystem is mounted there"
    except OSError as error:
        return f"{error.strerror}"
    return ""
