"""Cleans a node as soon as that can be, and says so."""

from __future__ import annotations

import signal
from functools import partial
from typing import Final

import structlog
import trio

from csi.cleaning.node import Places, clean

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS: Final = 0.5


async def run_cleaner(places: Places, told: str = "") -> None:
    """Until all is gone; with ``told``, until SIGTERM, after it has made that file."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await _clean(places)
                if told:
                    await trio.Path(told).touch()
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()

            nursery.start_soon(work)
            async for _ in signals:
                nursery.cancel_scope.cancel()


async def _clean(places: Places) -> None:
    waits = ""
    while reason := await trio.to_thread.run_sync(partial(clean, places)):
        if reason != waits:
            waits = reason
            log.warning("cleaner.waits", reason=reason, remedy="it is looked at again")
        await trio.sleep(_LOOK_EVERY_SECONDS)
    log.info("cleaner.done")
