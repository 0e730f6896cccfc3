"""The node's API for its operator, on a unix socket that is its owner's alone (control.proto, service Node)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import structlog
import trio

from fuse_tier import __version__
from fuse_tier.checkpoints import Saved
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, DeadlineExceeded, InvalidRequest, NotFound
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage, Manifest, encode
from fuse_tier.replicate.choice import Chooser
from fuse_tier.replicate.directory import into_directory
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.inventory import Inventory
from fuse_tier.replicate.marks import Marks
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.mounting import Mounting
from fuse_tier.replicate.plan import Leg
from fuse_tier.replicate.planning import Part, Planner
from fuse_tier.replicate.preparing import MountOrder
from fuse_tier.replicate.settling import awaited_snapshot
from fuse_tier.replicate.steps import Report, steps
from fuse_tier.replicate.stewardship import Stewardship
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.restarts import Mark
from fuse_tier.tiers.base import TierName
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.members import domain_to_wire, parse_user
from fuse_tier.wire.restarts import parse_job
from fuse_tier.wire.standing import standing_to_wire

log = structlog.get_logger(__name__)


class NodeService:
    """Checks what is asked and hands it on; every answer of more than a moment comes in steps."""

    def __init__(
        self,
        volumes: Volumes,
        mounting: Mounting,
        chooser: Chooser,
        fetcher: Fetcher,
        inventory: Inventory,
        nursery: trio.Nursery,
        stewardship: Stewardship | None,
        marks: Marks,
        membership: Membership,
        planner: Planner,
        *,
        replicas: int,
        drain_seconds: float,
    ) -> None:
        self._volumes = volumes
        self._mounting = mounting
        self._chooser = chooser
        self._fetcher = fetcher
        self._inventory = inventory
        self._nursery = nursery
        self._stewardship = stewardship
        self._marks = marks
        self._membership = membership
        self._planner = planner
        self._copies = max(1, replicas)
        self._drain_seconds = drain_seconds

    async def Mount(self, request: pb.MountRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        """Restores and mounts."""
        identity = Identity.parse(request.identity)
        lineage = Lineage(
            run=request.run or identity.workload,
            owner_uid=request.owner_uid,
            world_size=request.world_size,
            topology=request.topology,
            step_pattern=request.step_pattern,
        )
        order = MountOrder(
            identity,
            lineage,
            _absolute(request.mountpoint),
            _one_state(request.snapshot, request.version),
            request.read_only,
            request.version,
            _is_consistent(request),
            request.step if request.HasField("step") else None,
            parse_user(request.user),
            of_any_shape=request.restore == "latest",
        )
        async for step in steps(self._nursery, lambda report: self._mounting.mount(order, report)):
            yield step

    async def Unmount(self, request: pb.UnmountRequest, caller: Caller) -> pb.UnmountReply:  # noqa: N802
        """Unmounts, takes the last snapshot, and waits for its copies as long as is asked."""
        seconds = self._drain_seconds if request.drain_seconds < 0 else request.drain_seconds
        volume = await self._mounting.unmount(_absolute(request.mountpoint), seconds)
        reply = pb.UnmountReply(identity=str(volume.identity))
        if volume.newest is not None:
            tiers = [
                tier.value
                for tier in TierName
                if volume.copies.durable(tier, self._copies) >= volume.newest.id.number
            ]
            reply.newest.CopyFrom(_describe(volume.newest, tiers))
        return reply

    async def Alive(self, request: pb.Empty, caller: Caller) -> pb.AliveReply:  # noqa: N802
        """That this worker's loop turns, and what it has heard of itself."""
        domain = self._membership.heard_domain()
        return pb.AliveReply(version=__version__, domain=domain_to_wire(domain) if domain else None)

    async def Status(self, request: pb.Empty, caller: Caller) -> pb.StatusReply:  # noqa: N802
        """What this node is doing."""
        return pb.StatusReply(facts=await self._inventory.status())

    async def List(self, request: pb.ListRequest, caller: Caller) -> pb.ListReply:  # noqa: N802
        """Snapshots, and where they are."""
        identity = Identity.parse(request.identity) if request.identity else None
        found = await self._inventory.listing(identity)
        aside = self._inventory.set_aside([manifest for manifest, _ in found])
        return pb.ListReply(
            snapshots=[_describe(manifest, tiers, is_aside=manifest.id in aside) for manifest, tiers in found]
        )

    async def Show(self, request: pb.ShowRequest, caller: Caller) -> pb.ManifestText:  # noqa: N802
        """One snapshot's manifest."""
        snapshot = SnapshotId.parse(request.id)
        chosen = await self._chooser.choose(snapshot.identity, None, snapshot.number)
        if chosen.manifest is None:
            raise NotFound(f"no tier has {snapshot}: see `fuse-tier ls`")
        return pb.ManifestText(text=encode(chosen.manifest))

    async def Wait(self, request: pb.WaitRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        """Waits until everything sealed so far is on a tier."""
        identity, tier = Identity.parse(request.identity), _tier(request.tier)
        seconds = request.timeout_seconds or Deadline.SYNC
        async for step in steps(self._nursery, lambda report: self._wait(identity, tier, seconds, report)):
            yield step

    async def _wait(self, identity: Identity, tier: TierName, seconds: float, report: Report) -> dict[str, Any]:
        volume = self._volumes.find(identity)
        if volume is None or not volume.has_tree:
            raise NotFound(f"{identity} has no files on this node: name a directory that is mounted here")
        self._inventory.check_reachable(tier)
        started, number = trio.current_time(), 0
        with trio.move_on_after(seconds):
            report.begin("taking a snapshot")
            snapshot = await awaited_snapshot(volume)
            if snapshot is not None:
                number = snapshot.id.number
                report.begin(f"waiting for {snapshot.id} on {tier}", snapshot.size)
                await volume.wait_until_on(tier, number, self._copies)
            return {
                "identity": str(identity),
                "snapshot": str(snapshot.id) if snapshot else None,
                "tier": tier.value,
                "seconds": trio.current_time() - started,
            }
        raise DeadlineExceeded(
            f"{identity}@{number or '?'} was not on the {tier} tier within {seconds:g} s: "
            "`fuse-tier status` tells why"
        )

    async def Restore(self, request: pb.RestoreRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        """Makes a plain tree of a snapshot, without a mount."""
        identity, number = Identity.parse(request.identity), _one_state(request.snapshot, request.version)
        _absolute(request.to)
        async for step in steps(self._nursery, lambda report: self._restore(identity, number, request, report)):
            yield step

    async def _restore(
        self, identity: Identity, number: int, request: pb.RestoreRequest, report: Report
    ) -> dict[str, Any]:
        target, lineage = _absolute(request.to), Lineage(request.run) if request.run else None
        report.begin("looking for snapshots")
        step = request.step if request.HasField("step") else None
        chosen = await self._chooser.choose(identity, lineage, number, request.version, step=step)
        if chosen.manifest is not None:
            report.begin(f"restoring {chosen.manifest.id}", chosen.manifest.size)
        restored = await into_directory(
            self._fetcher, identity, chosen, target, report.moved, partial=request.partial
        )
        facts = asdict(restored)
        return facts | {"snapshot": str(restored.snapshot), "to": target, "bytes": facts.pop("size")}

    async def Verify(self, request: pb.NodeVerifyRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        """Reads and checks every byte of a tier, or of all."""
        identity = Identity.parse(request.identity) if request.identity else None
        tiers = [_tier(request.tier)] if request.tier else list(TierName)
        async for step in steps(self._nursery, lambda report: self._inventory.verify(tiers, identity, report)):
            yield step

    async def MarkBad(self, request: pb.MarkBadRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        """A step is not restored again, on any node, unless somebody names it."""
        job = parse_job(request.job)
        mark = Mark(job, Lineage(request.run or job.workload).run, request.step, self._membership.clock())
        await self._marks.add(frozenset({mark}))
        self._membership.report_soon()
        log.info("step.marked_bad", job=str(job), run=mark.run, step=mark.step)
        return pb.Empty()

    async def Checkpoints(self, request: pb.CheckpointsRequest, caller: Caller) -> pb.CheckpointsReply:  # noqa: N802
        """The complete checkpoints of a job, as the coordinator knows of them."""
        found = await self._membership.checkpoints(parse_job(request.job))
        return pb.CheckpointsReply(standings=map(standing_to_wire, found))

    async def Plan(self, request: pb.PlanRequest, caller: Caller) -> pb.PlanReply:  # noqa: N802
        """From where a restore of these would come."""
        parts = []
        for one in request.parts:
            snapshot = SnapshotId.parse(one.snapshot)
            taker = Identity.parse(one.taker) if one.taker else snapshot.identity
            parts.append(Part(snapshot, one.bytes, one.in_bucket, taker))
        found = await self._planner.plan(parts, set(request.without))
        return pb.PlanReply(legs=map(_leg, found.legs), depth=found.depth)

    async def Prune(self, request: pb.PruneRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        """Gives up in the bucket what was superseded, or tells what would be."""
        stewardship = self._stewardship
        if stewardship is None:
            raise ConfigError("this node has no bucket: set `bucket.url` in its configuration")
        async for step in steps(self._nursery, lambda report: stewardship.prune(report, dry_run=request.dry_run)):
            yield step


def _leg(leg: Leg) -> pb.PlanLeg:
    sources = [
        pb.PlanSource(tier=one.tier.value, node=one.node, bytes=one.size, depth=one.depth) for one in leg.sources
    ]
    wanted = leg.wanted
    return pb.PlanLeg(snapshot=str(wanted.snapshot), at=wanted.at, sources=sources, taker=str(wanted.taker))


def _is_consistent(request: pb.MountRequest) -> bool:
    """Whether all ranks of the job are to go on from one step: so they are, where it is known how many there are."""
    if request.restore not in ("", "consistent", "latest"):
        raise InvalidRequest(f"restore {request.restore!r} must be consistent or latest")
    if request.restore == "consistent" and not request.world_size:
        raise InvalidRequest("`restore: consistent` needs to know how many ranks the job has: say its world size")
    if request.HasField("step") and (request.restore == "latest" or request.world_size < 2):
        raise InvalidRequest("a step is what all ranks of a job go back to: say its world size, or name a snapshot")
    return request.world_size > 1 and request.restore != "latest"


def _one_state(number: int, version: str) -> int:
    if number and version:
        raise InvalidRequest("a snapshot and a version were both named: name one of them")
    return number


def _describe(manifest: Manifest, tiers: list[str], *, is_aside: bool = False) -> pb.Snapshot:
    saved = Saved.of(manifest)
    return pb.Snapshot(
        id=str(manifest.id),
        run=manifest.lineage.run,
        files=sum(1 for entry in manifest.entries if entry.blob is not None),
        bytes=manifest.size,
        created_ns=manifest.created_ns,
        node=manifest.node,
        tiers=tiers,
        step=saved.step,
        set_aside=is_aside,
        older_steps=saved.older,
        groups=manifest.lineage.groups,
        part=manifest.lineage.part,
    )


def _absolute(path: str) -> str:
    if not os.path.isabs(path) or "\0" in path:
        raise InvalidRequest(f"{path!r} must be an absolute path")
    return os.path.normpath(path)


def _tier(text: str) -> TierName:
    try:
        return TierName(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no tier: use {', '.join(TierName)}") from error
