"""What a node with a bucket has besides the tier itself, put together: the backups of its volumes, its share of the
steward's work, and its way to whoever the steward is.
"""

from __future__ import annotations

from typing import Any

from fuse_tier.config import NodeConfig
from fuse_tier.identity import Identity
from fuse_tier.replicate.backup import BackupPolicy
from fuse_tier.replicate.backups import Backups
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.readers import Readers
from fuse_tier.replicate.records import JobRecords
from fuse_tier.replicate.retention import Keep
from fuse_tier.replicate.sharing import Sharing
from fuse_tier.replicate.steward import Steward, mounted_replicas, stewards
from fuse_tier.replicate.steward_service import StewardService
from fuse_tier.replicate.stewardship import Stewardship
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire.control_pb2_grpc import add_StewardServicer_to_server
from fuse_tier.wire.tls import TlsFiles


class BucketDuties:
    """Made by the worker; asks nothing of the bucket before it must."""

    def __init__(
        self, config: NodeConfig, bucket: BucketTier, membership: Membership, ram: RamTier, tls: TlsFiles | None
    ) -> None:
        kept = config.keep.bucket

        def is_steward() -> bool:
            return stewards(bucket.place, membership.own(), membership.members())[0] == config.node

        self.stewardship = Stewardship(
            bucket,
            Keep(kept.last, kept.hourly, kept.daily, kept.weekly, kept.monthly),
            lambda job: mounted_replicas(job, membership.own(), membership.members()),
            is_steward,
        )
        self.steward = Steward(bucket.place, membership, self.stewardship, tls)
        policy = BackupPolicy(config.backup.every, config.backup.steps)
        self.backups = Backups(policy, ram, self.steward.turn, self.steward.backed_up)
        self.records = JobRecords(bucket)
        self.readers = Readers(bucket.place, membership, Sharing(), tls)
        self._place = bucket.place

    def extend(self, places: Places) -> None:
        """Has others ask the steward before a restore, say in the bucket what is restored from there, and read each
        content there once.
        """
        places.ask_bucket = self.steward.in_bucket
        places.use_in_bucket = self.records.while_using
        places.readers_of_bucket = self.readers.refer

    def follow(self, identity: Identity, policy: BackupPolicy | None) -> None:
        """A job says itself which of its steps are backed up; None: as the node is configured."""
        if policy is None:
            self.backups.policies.pop(identity, None)
        else:
            self.backups.policies[identity] = policy

    def services(self) -> list[Any]:
        """What is served to other nodes beside ``Peer``."""
        return [(add_StewardServicer_to_server, StewardService(self.stewardship, self.readers, self._place))]
