"""All local volumes of a node: made or found once, each with its tasks."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.errors import ConfigError
from fuse_tier.identity import Identity
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.settling import keep_snapshots
from fuse_tier.replicate.succession import find_successor
from fuse_tier.replicate.volume import Volume, VolumeOptions
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_TASK_PAUSE_SECONDS = 5.0

Task = Callable[[Volume], Awaitable[None]]


class Volumes:
    """Owns the volumes, not their tasks: those belong to ``nursery``, and one volume's failure ends only its own."""

    def __init__(
        self,
        layout: Layout,
        ram: RamTier,
        options: VolumeOptions,
        hashing: trio.CapacityLimiter,
        nursery: trio.Nursery,
        *,
        has_bucket: bool,
    ) -> None:
        self._layout = layout
        self._ram = ram
        self._options = options
        self._hashing = hashing
        self._nursery = nursery
        self._has_bucket = has_bucket
        self._opening = trio.Lock()
        self._volumes: dict[Identity, Volume] = {}
        self.tasks: list[Task] = []  # each is run for every volume

    def __iter__(self) -> Iterator[Volume]:
        return iter(list(self._volumes.values()))

    def find(self, identity: Identity) -> Volume | None:
        """A volume that is known."""
        return self._volumes.get(identity)

    async def open(self, identity: Identity) -> Volume:
        """A volume, made known if it was not."""
        async with self._opening:
            volume = self._volumes.get(identity)
            if volume is None:
                volume = Volume(identity, self._ram, self._layout, self._options, self._hashing)
                await volume.load()
                await find_successor(volume, self._ram)
                self._volumes[identity] = volume
                for task in (keep_snapshots, *self.tasks):
                    self._nursery.start_soon(self._survive, task, volume)
            return volume

    async def discover(self) -> None:
        """Opens every volume that has a live tree in the RAM tier."""
        for identity in _found(self._layout):
            await self.open(identity)

    async def _survive(self, task: Task, volume: Volume) -> None:
        """A defect that one volume meets takes no other volume down, and its task is begun anew."""
        while True:
            try:
                return await task(volume)
            except Exception:
                log.exception("volume.task_failed", identity=str(volume.identity))
                metrics.error("task")
            await trio.sleep(_TASK_PAUSE_SECONDS)

    def tiers_to_reach(self) -> list[tuple[TierName, int]]:
        """Where a snapshot shall be, and in how many copies."""
        wanted = [(TierName.PEER, self._options.replicas)] if self._options.replicas else []
        return [*wanted, (TierName.BUCKET, 1)] if self._has_bucket else wanted


def _found(layout: Layout) -> list[Identity]:
    identities: list[Identity] = []
    for namespace in sorted(os.listdir(layout.volumes)):
        for workload in sorted(os.listdir(os.path.join(layout.volumes, namespace))):
            for replica in sorted(os.listdir(os.path.join(layout.volumes, namespace, workload))):
                try:
                    identities.append(Identity(namespace, workload, replica))
                except ConfigError as error:
                    log.error("ram.foreign_directory", path=f"{namespace}/{workload}/{replica}", reason=str(error))
    return identities
