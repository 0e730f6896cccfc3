"""The slow scrub: reads again, in its own time, all content that the RAM tier lists, and mends what has changed.

Memory errs, and content of a snapshot may lie for weeks until somebody needs it. What is not what its name says is
set aside at once, so that nobody is given it, and fetched from whoever has it: a peer or the bucket. What nobody
has is asked for again and again. One file at a time, no faster than is allowed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from threading import Event

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError, TierError
from fuse_tier.ram.scrubbed import read_scrubbed, write_scrubbed
from fuse_tier.threads import run_interruptible
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

Fetch = Callable[[Collection[Blob]], Awaitable[Mapping[Blob, TierError]]]
"""Brings blobs into the RAM tier from other places; gives those that no place could give, and why."""

_BATCH_BYTES = 256 << 20
_BATCH_BLOBS = 256
_LOST_AGAIN_SECONDS = 60.0
_SHORTEST_PAUSE = 0.005


class Scrubber:
    """Of one node. ``bytes_per_second`` is how fast it reads; ``clock`` gives seconds since 1970."""

    def __init__(
        self,
        ram: RamTier,
        fetch: Fetch,
        every_seconds: float,
        bytes_per_second: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ram = ram
        self._fetch = fetch
        self._every = every_seconds
        self._rate = bytes_per_second
        self._clock = clock
        self._thread = trio.CapacityLimiter(1)
        self.lost: frozenset[Blob] = frozenset()  # set aside, and no place had them

    async def run(self) -> None:
        """Runs until cancelled. A round is due one interval after the last whole one, whichever worker made that.

        Where none is known of, the interval begins now: a new tier has nothing that is old.
        """
        started, now = trio.current_time(), self._clock()
        since = await trio.to_thread.run_sync(read_scrubbed, self._ram.layout, now, limiter=self._thread)
        if since is None:
            since = now
            await self._survive(partial(self._note, now))
        due = started + since + self._every - now
        while True:
            with trio.move_on_at(due):
                while True:
                    await trio.sleep(_LOST_AGAIN_SECONDS if self.lost else self._every)
                    await self._survive(self._mend_lost)
            began = trio.current_time()
            await self._survive(self.go_through)
            due = began + self._every

    async def _survive(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (FuseTierError, OSError) as error:
            metrics.error("scrub")
            log.warning("scrub.postponed", place=self._ram.place, reason=str(error))

    async def _note(self, when: float) -> None:
        await trio.to_thread.run_sync(write_scrubbed, self._ram.layout, when, limiter=self._thread)

    async def go_through(self) -> None:
        """One round: everything that is listed now."""
        began, started, size, damaged = self._clock(), trio.current_time(), 0, 0
        waiting = sorted(await self._ram.named())
        while waiting:
            batch: list[Blob] = []
            while waiting and len(batch) < _BATCH_BLOBS and sum(blob.size for blob in batch) < _BATCH_BYTES:
                batch.append(waiting.pop())
            wrong = await self._read(batch)
            size += sum(blob.size for blob in batch)
            damaged += len(wrong)
            await self._mend(wrong)
        log.info(
            "scrub.done",
            place=self._ram.place,
            bytes=size,
            damaged=damaged,
            seconds=round(trio.current_time() - started, 3),
        )
        await self._note(began)

    async def _read(self, batch: Collection[Blob]) -> dict[Blob, str]:
        stop = Event()
        pace = _Pace(self._rate, stop)
        wrong = await run_interruptible(lambda: self._ram.what_is_wrong(batch, pace), stop.set, self._thread)
        metrics.scrubbed(sum(blob.size for blob in batch))
        if not wrong:
            return {}
        named = await self._ram.named()  # what was dropped meanwhile is nobody's loss
        return {blob: reason for blob, reason in wrong.items() if blob in named}

    async def _mend(self, wrong: Mapping[Blob, str]) -> None:
        if not wrong:
            return
        for blob, reason in wrong.items():
            metrics.scrub_found_damage()
            log.error("scrub.damaged", place=self._ram.place, blob=blob.name, reason=reason)
            await trio.to_thread.run_sync(self._ram.set_aside, blob, limiter=self._thread)
        self.lost |= wrong.keys()
        await self._mend_lost()

    async def _mend_lost(self) -> None:
        wanted = self.lost & await self._ram.missing(self.lost) & await self._ram.named()
        failed = await self._fetch(wanted) if wanted else {}
        for blob in wanted - failed.keys():
            log.info("scrub.mended", place=self._ram.place, blob=blob.name)
        for blob, error in failed.items():
            log.error("scrub.not_mended", place=self._ram.place, blob=blob.name, reason=str(error))
        self.lost = frozenset(failed)


class _Stopped(Exception):
    """The reading was told to end."""


class _Pace:
    """Told of each part that was read; returns when the next may be."""

    def __init__(self, rate: float, stop: Event) -> None:
        self._rate = rate
        self._stop = stop
        self._due = time.monotonic()

    def __call__(self, moved: int) -> None:
        now = time.monotonic()
        self._due = max(self._due, now - 1.0) + moved / self._rate  # what was late is not caught up with
        if self._due - now > _SHORTEST_PAUSE and self._stop.wait(self._due - now):
            raise _Stopped
