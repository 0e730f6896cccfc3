"""Watches the root of each mounted volume for orders, and has each one answered.

A daemon announces that its tree has changed; then one look at the root tells whether an order is there. So a volume
whose job never asks for anything costs a look at each change, and a job that asks needs no side channel. Of one
volume one answer is at work: a new order ends that to the one before.

An order that cannot be read, or cannot be followed, is answered at once too: the job is told why, and the log.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, DeadlineExceeded
from fuse_tier.identity import Identity
from fuse_tier.protocolfiles import FAILED, ORDER
from fuse_tier.replicate.protocol import record
from fuse_tier.replicate.protocol.cycle import REFUSALS, Cycle, Means
from fuse_tier.replicate.protocol.order import Order, read_order
from fuse_tier.replicate.protocol.record import OrderRecord
from fuse_tier.replicate.protocol.stage import Stage, holds_a_step, read_order_file
from fuse_tier.replicate.volume import Volume
from fuse_tier.wire.channel import ChannelClosed

log = structlog.get_logger(__name__)

_LONGEST_REASON = 2000

Followed = Callable[[Identity, Order | None], None]
"""Is told which order a volume follows, or that it follows none."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Which order file was dealt with."""

    inode: int
    changed_ns: int


class Adapter:
    """The file protocol of one node's volumes."""

    def __init__(self, means: Means, followed: Followed) -> None:
        self._means = means
        self._followed = followed
        self.begins = trio.Event()
        """It is known what is mounted on this node."""

    async def watch(self, volume: Volume) -> None:
        """Runs for as long as the volume is known here."""
        await self.begins.wait()
        async with trio.open_nursery() as nursery:
            await _Watch(volume, self._means, self._followed, nursery).run()

    async def forget(self, volume: Volume) -> None:
        """Before a mount: what an earlier pod asked for is no matter of the next."""
        await trio.to_thread.run_sync(record.forget, volume.layout)
        self._followed(volume.identity, None)


class _Watch:
    def __init__(self, volume: Volume, means: Means, followed: Followed, nursery: trio.Nursery) -> None:
        self._volume = volume
        self._means = means
        self._followed = followed
        self._nursery = nursery
        self._stage = Stage(volume)
        self._seen: _Seen | None = None
        self._answering: trio.CancelScope | None = None
        self._ended = trio.Event()

    async def run(self) -> None:
        volume, version, is_new = self._volume, -1, True
        while True:
            version = await volume.changes.wait_beyond(version)
            if volume.mountpoint is None:
                await self._stop()
                if volume.is_arranged:
                    await self._stage.undo()
                continue
            if is_new:
                is_new = False
                await self._go_on()
            if _order_is_there(volume):  # on a tmpfs: it never waits
                await self._look()

    async def _go_on(self) -> None:
        """A worker before this one may have accepted an order and not answered it."""
        noted = await trio.to_thread.run_sync(record.read, self._volume.layout)
        if noted is None:
            return None
        self._followed(self._volume.identity, noted.order)
        if _order_is_there(self._volume):
            return None
        if noted.is_answered:
            return await self._stage.end()

        async def go_on(cycle: Cycle) -> None:
            await cycle.go_on(noted)

        self._begin(go_on)
        return None

    async def _look(self) -> None:
        try:
            found, content = await trio.to_thread.run_sync(read_order_file, self._volume.layout)
        except FileNotFoundError:
            return None
        except ConfigError as error:
            await self._stop()
            return await self._refuse(error)
        if self._seen == _Seen(found.st_ino, found.st_ctime_ns) or await self._is_being_written(found.st_ino):
            return None
        await self._stop()
        self._seen = _Seen(found.st_ino, found.st_ctime_ns)
        if not content.strip():
            log.info("replicator.begun_again", identity=str(self._volume.identity))
            return await self._begin_again()
        try:
            order = read_order(content)
        except ConfigError as error:
            return await self._refuse(error)
        self._followed(self._volume.identity, order)

        async def run(cycle: Cycle) -> None:
            await cycle.run(order)

        self._begin(run)
        return None

    async def _is_being_written(self, inode: int) -> bool:
        """Some clients write it in place: it is read when they have closed it."""
        gate = self._volume.gate
        if gate is None:
            return True  # its daemon is away; when it is back it says that something has changed
        try:
            return inode in (await gate.version()).writers.inodes
        except ChannelClosed:
            return True

    async def _begin_again(self) -> None:
        """An empty order is deleted, and the last one is answered once more."""
        noted = await trio.to_thread.run_sync(record.read, self._volume.layout)
        if noted is None:
            return await self._stage_away()
        await trio.to_thread.run_sync(record.write, self._volume.layout, OrderRecord(noted.order, is_first=False))

        async def run(cycle: Cycle) -> None:
            await cycle.run(noted.order)

        self._begin(run)
        return None

    async def _stage_away(self) -> None:
        await self._stage.begin()
        await self._stage.arrange([ORDER.decode()], [])
        await self._stage.end()

    def _begin(self, work: Callable[[Cycle], Awaitable[None]]) -> None:
        self._answering, self._ended = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._answer, self._answering, self._ended, work)

    async def _answer(
        self, scope: trio.CancelScope, ended: trio.Event, work: Callable[[Cycle], Awaitable[None]]
    ) -> None:
        cycle = Cycle(self._volume, self._means, self._stage)
        try:
            with scope:
                try:
                    with trio.move_on_after(Deadline.FRAMEWORK) as patience:
                        await work(cycle)
                    if patience.cancelled_caught:
                        raise DeadlineExceeded(f"the step could not be brought within {Deadline.FRAMEWORK:g} s")
                except REFUSALS as error:
                    await self._refuse(error)
        finally:
            ended.set()

    async def _stop(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
            await self._ended.wait()
            self._answering = None

    async def _refuse(self, error: Exception) -> None:
        """The job has to end: it is told why, in one line."""
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        metrics.error("replicator")
        log.error("replicator.failed", identity=str(self._volume.identity), reason=reason)
        noted = await trio.to_thread.run_sync(record.read, self._volume.layout)
        if noted is not None and not noted.is_answered:
            answered = replace(noted, is_answered=True)
            await trio.to_thread.run_sync(record.write, self._volume.layout, answered)
        try:
            if not self._volume.is_arranged:
                await self._stage.begin()
            # The answers to an earlier order go with this one; steps stay where they are.
            tree = self._volume.layout.tree
            stale = [name for name in await self._stage.stale() if not holds_a_step(os.path.join(tree, name))]
            names = [name for name in stale if name.encode() != ORDER] + [ORDER.decode()]
            await self._stage.put_back({FAILED: reason + "\n"}, names)
            await self._stage.end()
        except REFUSALS as failure:
            log.warning("replicator.not_told", identity=str(self._volume.identity), reason=str(failure))


def _order_is_there(volume: Volume) -> bool:
    return os.path.lexists(os.path.join(volume.layout.tree, os.fsdecode(ORDER)))
