"""What a node tells the others of itself, and how news get from one of its parts to another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import trio

from fuse_tier import metrics
from fuse_tier.members import LocalFacts
from fuse_tier.replicate.bucket_duties import BucketDuties
from fuse_tier.replicate.holdings import OwnHoldings
from fuse_tier.replicate.inventory import Inventory
from fuse_tier.replicate.marks import Marks
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.mounting import Mounting
from fuse_tier.replicate.preemption import Preemption
from fuse_tier.replicate.protocol.service import ReplicationService
from fuse_tier.replicate.upkeep import Upkeep
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.ram import RamTier

_LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Gathered from the parts of one worker that know them."""

    ram: RamTier
    volumes: Volumes
    mounting: Mounting
    holdings: OwnHoldings
    marks: Marks
    membership: Membership
    upkeep: Upkeep
    inventory: Inventory
    preemption: Preemption
    replication: ReplicationService
    duties: BucketDuties | None

    def now(self) -> LocalFacts:
        """Everything that a report has."""
        volumes, duties = self.volumes, self.duties
        return LocalFacts(
            capacity_bytes=0 if self.preemption.is_leaving else self.ram.capacity_bytes(),
            free_bytes=0 if self.preemption.is_leaving else self.ram.free_bytes(),
            mounted=frozenset(self.mounting.claimed),
            holdings=self.holdings.numbers,
            bucket={volume.identity: (number,) for volume in volumes if (number := volume.copies.in_bucket())},
            epochs={volume.identity: epoch for volume in volumes if (epoch := volume.tenure.numbering.epoch)},
            users={volume.identity: user for volume in volumes if (user := volume.tenure.user)},
            saved=self.holdings.saved,
            resumed={
                volume.identity: replace(resumption, is_over=not volume.tenure.is_at_work)
                for volume in volumes
                if (resumption := volume.tenure.resumption) is not None and not volume.tenure.superseded
            },
            marks=self.marks.own(),
            standings=duties.stewardship.standings() if duties else (),
            failing=duties.backups.failing(volumes) if duties else {},
            job_addresses=dict(self.replication.registered),
        )

    async def keep(self) -> None:
        """Looks again at what is held whenever something was committed, and every second, until cancelled."""
        version = -1
        while True:
            with trio.move_on_after(_LOOK_EVERY_SECONDS):
                version = await self.upkeep.wake.wait_beyond(version)
            await self.holdings.refresh()
            metrics.ram(self.ram.capacity_bytes(), self.ram.free_bytes())
            metrics.queue_length(self.inventory.copies_waiting())

    async def pass_news_on(self, volume: Volume) -> None:
        """What is new of a volume is of interest to retention and to the coordinator."""
        version = -1
        while True:
            version = await volume.news.wait_beyond(version)
            self.upkeep.wake.announce()

    async def pass_members_on(self) -> None:
        """Who comes and goes changes where copies belong."""
        version = self.membership.version
        while True:
            version = await self.membership.wait_changed(version)
            await self.marks.add(self.membership.marks())
            for volume in self.volumes:
                volume.news.announce()
