"""The replication worker, kept running.

A worker that ends is started again, later each time, for as long as the node lives; jobs do not notice. Only one
that refuses to start at all, before it was ever ready, ends the node: it has said why, and would say so again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.node.priority import COPYING, protect
from fuse_tier.node.processes import Backoff, Child, describe, running

log = structlog.get_logger(__name__)

_REFUSALS: Final = (1, 2)  # exit statuses of our programs: failed, bad usage or config


class Worker:
    """One node's worker, through all its lives. ``run`` belongs in a nursery of the node."""

    def __init__(self, command: Sequence[str], backoff: Backoff | None = None) -> None:
        self.ready = trio.Event()
        """It has been ready once."""
        self.refused = trio.Event()
        """It will not start; ``status`` says what it ended with."""
        self.status = 0
        self._command = command
        self._backoff = backoff or Backoff()
        self._child: Child | None = None
        self._ending = trio.Event()

    async def run(self) -> None:
        """Starts it, and starts it again, until ``end`` is called or it refuses."""
        failures = 0
        while not self._ending.is_set() and not self.refused.is_set():
            started = trio.current_time()
            async with running(self._command, "worker") as child:
                self._child = child
                protect(COPYING, child.pid)
                status = await self._watch(child)
            self._child = None
            if self._ending.is_set():
                return
            if not self.ready.is_set() and status in _REFUSALS:
                self.status = status
                self.refused.set()
                return
            failures = self._backoff.count(failures, trio.current_time() - started)
            delay = self._backoff.delay(failures)
            log.warning("worker.ended", pid=child.pid, reason=describe(status), again_in_seconds=delay)
            with trio.move_on_after(delay):
                await self._ending.wait()

    async def end(self, drain_seconds: float, hurry: trio.Event) -> None:
        """Ends it in order: it may drain for ``drain_seconds``, or until ``hurry`` is set."""
        self._ending.set()
        if self._child is not None:
            await self._child.end(drain_seconds + Deadline.WORKER_STOP, hurry)

    async def kill(self) -> None:
        """Ends it at once, without a word to anybody: what is mounted stays this node's, for its next worker."""
        self._ending.set()
        if self._child is not None:
            await self._child.destroy()

    async def _watch(self, child: Child) -> int:
        log.info("worker.started", pid=child.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, child)
            nursery.start_soon(self._complain_when_slow, child)
            status = await child.wait()
            nursery.cancel_scope.cancel()
        return status

    async def _listen(self, child: Child) -> None:
        """Reads all that it says, so that it never waits for a reader."""
        while True:
            try:
                said = await child.next_line()
            except FuseTierError as error:
                log.warning("worker.misspoke", reason=str(error))
                continue
            if said is None:
                return
            if said.get("ready"):
                self.ready.set()

    async def _complain_when_slow(self, child: Child) -> None:
        with trio.move_on_after(Deadline.MOUNT) as patience:
            await self.ready.wait()
        if patience.cancelled_caught:
            log.warning("worker.slow", pid=child.pid, seconds=Deadline.MOUNT, reason="it is not ready yet")
