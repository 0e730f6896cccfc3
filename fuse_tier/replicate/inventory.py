"""What is where, for people: the status of a node, the snapshots on all tiers, and whether they are intact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import structlog
import trio

from fuse_tier import __version__
from fuse_tier.checkpoints import Saved
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, FuseTierError, TierRefused, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.members import Member
from fuse_tier.ram.spares import Spares
from fuse_tier.ram.tmpfs import huge_page_mode
from fuse_tier.ram.warm import read_warmed
from fuse_tier.replicate.aside import set_aside
from fuse_tier.replicate.backups import Backups
from fuse_tier.replicate.copying import Copier
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.resting import Resting
from fuse_tier.replicate.sparing import Sparing
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.supervisor import Supervisor
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.base import Tier, TierName
from fuse_tier.verified import VerifyReport

log = structlog.get_logger(__name__)


class Inventory:
    """Asks the tiers; changes nothing."""

    def __init__(
        self,
        node: str,
        cluster: str,
        places: Places,
        volumes: Volumes,
        copier: Copier,
        supervisor: Supervisor,
        replicas: int,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._places = places
        self._volumes = volumes
        self._copier = copier
        self._supervisor = supervisor
        self._replicas = replicas
        self.backups: Backups | None = None  # of a node with a bucket
        self.resting: Resting | None = None
        self.sparing: Sparing | None = None

    def _peers(self) -> list[Member]:
        return [member for member in self._places.membership.members() if member.alive and member.node != self._node]

    def check_reachable(self, tier: TierName) -> None:
        """Raises ConfigError for a tier that this node does not have at all."""
        if tier is TierName.BUCKET and self._places.bucket is None:
            raise ConfigError("this node has no bucket: set `bucket.url` in its configuration")
        if tier is TierName.PEER and not self._replicas:
            raise ConfigError("this node keeps no copies on peers: set `replicas` in its configuration")

    # ---- status ----

    async def status(self) -> str:
        """JSON; docs/operations.md says what it means."""
        tiers: list[dict[str, Any]] = [{} for _ in range(2 + len(self._peers()))]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ram_status, tiers, 0)
            for index, member in enumerate(self._peers(), 1):
                nursery.start_soon(self._tier_status, tiers, index, self._places.peer(member), member)
            if self._places.bucket is not None:
                nursery.start_soon(self._tier_status, tiers, len(tiers) - 1, self._places.bucket, None)
        mounts = await self._mounts()
        volumes = [self._volume_status(volume, mounts) for volume in self._volumes if volume.has_tree]
        return json.dumps(
            {
                "node": self._node,
                "version": __version__,
                "cluster": self._cluster,
                "passthrough": await self._passthrough(),
                "tiers": [tier for tier in tiers if tier],
                "volumes": volumes,
                "queue": {
                    "copies": self.copies_waiting(),
                    "bytes": sum(
                        volume.newest.size * self._lacking(volume) for volume in self._volumes if volume.newest
                    ),
                },
                "rates": {
                    f"{tier}_bytes_per_second": meter.rate() for tier, meter in sorted(self._copier.meters.items())
                },
                "deduplication": {tier.value: self._deduplication(tier) for tier in sorted(self._copier.meters)},
            }
        )

    def _deduplication(self, tier: TierName) -> dict[str, float | None]:
        savings, sent = self._copier.savings[tier], self._copier.meters[tier].total
        return {"named_bytes": savings.named_bytes, "sent_bytes": sent, "factor": savings.factor(sent)}

    async def _passthrough(self) -> str:
        """Whether file content bypasses the daemons, and if not, why."""
        try:
            mounts = await self._supervisor.mounts()
        except (FuseTierError, OSError) as error:
            return f"unknown: {error}"
        if not mounts:
            return "nothing is mounted"
        on = sum(bool(mount["passthrough"]) for mount in mounts)
        if on == len(mounts):
            return "on"
        why = next(str(mount["plain_reason"]) for mount in mounts if not mount["passthrough"])
        return f"off: {why}" if not on else f"on for {on} of {len(mounts)} volumes: {why}"

    async def _ram_status(self, tiers: list[dict[str, Any]], index: int) -> None:
        ram = self._places.ram
        tiers[index] = {
            "tier": ram.name.value,
            "place": ram.place,
            "state": "ok",
            "reason": "",
            "capacity_bytes": ram.capacity_bytes(),
            "free_bytes": ram.free_bytes(),
            "snapshots": len(await ram.snapshots()),
            "huge_pages": huge_page_mode(ram.layout.root),
            "warmed": read_warmed(ram.layout),
            "small_pages_bytes": self.resting.waiting_bytes if self.resting else 0,
            "spare_bytes": sum(Spares(ram.layout).sizes()),
            "spares_wanted_bytes": self.sparing.waiting_bytes if self.sparing else 0,
        }

    async def _tier_status(self, tiers: list[dict[str, Any]], index: int, tier: Tier, member: Member | None) -> None:
        state, reason, snapshots = "ok", "", None
        try:
            with trio.fail_after(Deadline.CONTROL_CALL):
                snapshots = len(await tier.snapshots())
        except TierRefused as error:
            state, reason = "refused", str(error)
        except FuseTierError as error:
            state, reason = "unavailable", str(error)
        except trio.TooSlowError:
            state, reason = "unavailable", f"no answer within {Deadline.CONTROL_CALL:g} s"
        tiers[index] = {
            "tier": tier.name.value,
            "place": tier.place,
            "state": state,
            "reason": reason,
            "capacity_bytes": member.capacity_bytes if member else None,
            "free_bytes": member.free_bytes if member else None,
            "snapshots": snapshots,
        }

    async def _mounts(self) -> list[dict[str, Any]]:
        """What the supervisor says of them; those that have failed do so for every call until they are unmounted."""
        try:
            return await self._supervisor.mounts()
        except FuseTierError as error:
            log.warning("status.supervisor_silent", reason=str(error))
            return []

    def _volume_status(self, volume: Volume, mounts: list[dict[str, Any]]) -> dict[str, Any]:
        newest, ours = volume.newest, [mount for mount in mounts if mount["identity"] == str(volume.identity)]
        failed = next((mount for mount in ours if mount["state"] == "failed"), {})
        return {
            "identity": str(volume.identity),
            "mountpoint": volume.mountpoint or failed.get("mountpoint"),
            "mounted": volume.mountpoint is not None,
            "failed": failed.get("reason", ""),
            "restarts": max((mount["restarts"] for mount in ours), default=0),
            "run": volume.lineage.run,
            "epoch": volume.tenure.numbering.epoch,
            "newest": {
                "number": newest.id.number,
                "created_ns": newest.created_ns,
                "files": sum(1 for entry in newest.entries if entry.blob is not None),
                "bytes": newest.size,
            }
            if newest
            else None,
            "dirty": volume.is_dirty,
            "durable": {tier.value: volume.copies.durable(tier, max(1, self._replicas)) or None for tier in TierName},
            "peers": volume.copies.held(TierName.PEER),
            "queue": self._lacking(volume),
            "backup": self.backups.status(volume) if self.backups else None,
            "unreserved_bytes": volume.unreserved_bytes,
        }

    def _lacking(self, volume: Volume) -> int:
        """On how many tiers the newest snapshot is not yet."""
        if volume.newest is None:
            return 0
        reach = self._volumes.tiers_to_reach()
        return sum(volume.copies.durable(tier, copies) < volume.newest.id.number for tier, copies in reach)

    def copies_waiting(self) -> int:
        """How many copies of newest snapshots are still to be made."""
        return sum(self._lacking(volume) for volume in self._volumes)

    # ---- listing ----

    async def listing(self, identity: Identity | None) -> list[tuple[Manifest, list[str]]]:
        """Every snapshot that some tier lists, with the tiers that do."""
        found: dict[SnapshotId, list[Tier]] = {}
        for tier in self._everywhere():
            try:
                for snapshot in await tier.snapshots(identity):
                    found.setdefault(snapshot, []).append(tier)
            except FuseTierError as error:
                log.warning("list.place_silent", place=tier.place, reason=str(error))
        listed: list[tuple[Manifest, list[str]]] = []
        for snapshot, tiers in sorted(found.items()):
            manifest = await self._manifest(snapshot, tiers)
            if manifest is not None:
                listed.append((manifest, list(dict.fromkeys(tier.name.value for tier in tiers))))
        return listed

    def set_aside(self, listed: Sequence[Manifest]) -> frozenset[SnapshotId]:
        """Those of these snapshots that count for nothing any more: their job has gone back to an earlier step."""
        by_volume: dict[Identity, list[Saved]] = {}
        for manifest in listed:
            by_volume.setdefault(manifest.id.identity, []).append(Saved.of(manifest))
        aside: set[SnapshotId] = set()
        for identity, several in by_volume.items():
            volume = self._volumes.find(identity)
            resumption = volume.tenure.resumption if volume is not None else None
            aside |= {SnapshotId(identity, number) for number in set_aside(several, resumption)}
        return frozenset(aside)

    def _everywhere(self) -> list[Tier]:
        tiers: list[Tier] = [self._places.ram, *(self._places.peer(member) for member in self._peers())]
        return [*tiers, self._places.bucket] if self._places.bucket is not None else tiers

    async def _manifest(self, snapshot: SnapshotId, tiers: Sequence[Tier]) -> Manifest | None:
        for tier in tiers:
            try:
                return await tier.manifest(snapshot)
            except FuseTierError as error:
                log.warning("list.manifest_unreadable", snapshot=str(snapshot), place=tier.place, reason=str(error))
        return None

    # ---- verification ----

    async def verify(self, tiers: Sequence[TierName], identity: Identity | None, report: Report) -> dict[str, Any]:
        """Reads and hashes everything on the tiers. Raises TierError when one that was named cannot be read."""
        results: list[dict[str, Any]] = []
        for tier in self._everywhere():
            if tier.name not in tiers:
                continue
            report.begin(f"verifying {tier.place}")
            try:
                verified = await tier.verify(identity)
            except TierUnavailable as error:
                if len(tiers) == 1:
                    raise
                verified = VerifyReport(0, 0, 0, (f"not verified: {error}",))
            results.append(
                {
                    "tier": tier.name.value,
                    "place": tier.place,
                    "snapshots": verified.snapshots,
                    "blobs": verified.blobs,
                    "bytes": verified.bytes,
                    "damaged": list(verified.damaged),
                }
            )
        return {"tiers": results}
