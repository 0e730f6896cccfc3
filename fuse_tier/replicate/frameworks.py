"""What training frameworks ask this node for: by files, and by containers that begin again in their place."""

from __future__ import annotations

from fuse_tier.identity import Identity
from fuse_tier.replicate.bucket_duties import BucketDuties
from fuse_tier.replicate.protocol.adapter import Adapter
from fuse_tier.replicate.protocol.cycle import Means
from fuse_tier.replicate.protocol.in_place import InPlace
from fuse_tier.replicate.protocol.order import Order
from fuse_tier.replicate.volumes import Volumes


class Frameworks:
    """Of one node. ``duties`` follow what frameworks say of backups; None where there is no bucket."""

    def __init__(self, means: Means, volumes: Volumes, duties: BucketDuties | None) -> None:
        self._volumes = volumes
        self._duties = duties
        self.adapter = Adapter(means, self._followed)
        self.in_place = InPlace(means)

    def _followed(self, identity: Identity, order: Order | None) -> None:
        if (volume := self._volumes.find(identity)) is not None:
            volume.framework = order.framework if order else ""
        if self._duties is not None:
            self._duties.follow(identity, order.backups if order else None)
