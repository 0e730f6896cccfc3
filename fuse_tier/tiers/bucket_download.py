"""A range of an object down, by whichever of two requests is faster.

A read that brings nothing for HEDGE_SECONDS gets a second request beside it, from where the first one is. What is
slow about a service is mostly one connection or one machine of it, so the second is usually fast; there are few of
them at a time, so that a service which is slow altogether does not get twice the load.

Owns where bytes land: each once, in order, from whoever brings them first. A request that nobody waits for any more
is left behind, and can write nowhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Progress
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.tiers.bucket_checksums import crc32c
from fuse_tier.tiers.bucket_content import Interrupted
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

HEDGE_SECONDS: Final = 1.0  # the service's answers begin within a tenth of that


class Landing:
    """Where the bytes of a range land. ``write`` gets each piece and where it starts, in order; any thread may bring
    them.
    """

    def __init__(
        self, start: int, end: int, write: Callable[[memoryview, int], object], progress: Progress | None = None
    ) -> None:
        self.start = start
        self.end = end
        self.done = start
        self.crc32c = 0
        self.whole_crc32c: str | None = None  # of the whole object, as the service says
        self._last_sign: float | None = None
        self._write = write
        self._progress = progress
        self._extend = crc32c().extend
        self._lock = threading.Lock()
        self._is_open = True

    def begin(self) -> None:
        """Somebody asks for the bytes now."""
        if self._last_sign is None:
            self._last_sign = time.monotonic()

    @property
    def quiet_seconds(self) -> float:
        """How long nothing has come that was asked for."""
        return 0.0 if self._last_sign is None else time.monotonic() - self._last_sign

    @property
    def is_full(self) -> bool:
        """Whether all of the range is there."""
        return self.done >= self.end

    def bring(self, piece: bytes, start: int) -> None:
        """Takes what is new in a piece. Raises Interrupted when nobody waits for it any longer."""
        with self._lock:
            if not self._is_open:
                raise Interrupted
            fresh = memoryview(piece)[self.done - start :]
            if not fresh:
                return
            self._write(fresh, self.done)
            self.crc32c = self._extend(self.crc32c, bytes(fresh) if len(fresh) < len(piece) else piece)
            self.done += len(fresh)
            self._last_sign = time.monotonic()
        if self._progress is not None:
            self._progress(len(fresh))

    def close(self) -> None:
        """Nothing may land from here on."""
        with self._lock:
            self._is_open = False


class Downloads:
    """Brings ranges."""

    def __init__(self, objects: Objects, work: Work) -> None:
        self._objects = objects
        self._work = work

    async def bring(self, name: str, landing: Landing, whole: int) -> None:
        """Fills a landing from an object that is ``whole`` bytes long. Raises NotFound, Damaged, TierUnavailable and
        what the landing's ``write`` raises.
        """
        failures: list[FuseTierError] = []
        readers, has_come = 0, False

        async def read(*, spare: bool) -> None:
            nonlocal readers, has_come
            readers += 1
            try:
                await self._work.run(partial(self._read, name, landing, whole), spare=spare, leave=True)
                has_come = True
            except FuseTierError as error:
                failures.append(error)
            readers -= 1
            if has_come or not readers or not isinstance(failures[-1], TierUnavailable):
                nursery.cancel_scope.cancel()

        async def hedge() -> None:
            while True:
                quiet = landing.quiet_seconds
                if quiet >= HEDGE_SECONDS and readers == 1 and self._work.has_spare:
                    metrics.bucket_hedged()
                    log.info("bucket.read_hedged", object=name, done=landing.done, of=landing.end)
                    nursery.start_soon(partial(read, spare=True))
                await trio.sleep(HEDGE_SECONDS if quiet >= HEDGE_SECONDS else HEDGE_SECONDS - quiet)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(read, spare=False))
                nursery.start_soon(hedge)
        finally:
            landing.close()
        if not has_come:
            raise failures[-1]

    def _read(self, name: str, landing: Landing, whole: int, task: Task) -> None:
        landing.begin()

        def attempt() -> None:
            at = landing.done
            if at == landing.end and landing.whole_crc32c is not None:
                return
            with self._objects.read(name, at, landing.end - at, whole, task.stop) as reading:
                landing.whole_crc32c = reading.crc32c
                for piece in reading.pieces:
                    landing.bring(piece, at)
                    at += len(piece)
                    task.advanced()
            if not landing.is_full:
                raise TierUnavailable(f"{name} ended at {at} of {landing.end}")

        task.retry(attempt)
