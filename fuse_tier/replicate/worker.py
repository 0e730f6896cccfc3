"""The replication worker of one node: everything but the mounts.

Here its parts are put together; ``__main__.py`` runs it as a process. One nursery owns every task.

The start is in this order for a reason: garbage is collected before anything is adopted (ram/pins.py); what is
mounted is known before others are told what is mounted here.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.checkpoints import Job
from fuse_tier.config import NodeConfig
from fuse_tier.errors import TierError
from fuse_tier.identity import Identity
from fuse_tier.members import LocalFacts, Member
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.bucket_duties import BucketDuties
from fuse_tier.replicate.choice import Chooser, Chosen
from fuse_tier.replicate.copying import Copier
from fuse_tier.replicate.daemons import DaemonSession
from fuse_tier.replicate.expecting import Expecting
from fuse_tier.replicate.fanout import Fanout
from fuse_tier.replicate.filling import Filling
from fuse_tier.replicate.holdings import OwnHoldings
from fuse_tier.replicate.inventory import Inventory
from fuse_tier.replicate.knowledge import Knowledge
from fuse_tier.replicate.leftovers import Leftovers
from fuse_tier.replicate.marks import Marks
from fuse_tier.replicate.membership import Membership, build_membership
from fuse_tier.replicate.mounting import Mounting
from fuse_tier.replicate.node_service import NodeService
from fuse_tier.replicate.orphans import Orphans
from fuse_tier.replicate.ownership import Ownership
from fuse_tier.replicate.peer_service import PeerService
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.planning import Planner
from fuse_tier.replicate.preemption import Preemption
from fuse_tier.replicate.preparing import Preparing
from fuse_tier.replicate.protocol.adapter import Adapter
from fuse_tier.replicate.protocol.cycle import Means
from fuse_tier.replicate.protocol.in_place import InPlace
from fuse_tier.replicate.protocol.order import Order
from fuse_tier.replicate.protocol.service import ReplicationService
from fuse_tier.replicate.replacing import Trees
from fuse_tier.replicate.resting import Resting, huge_bytes_of
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.room import RoomKeeper, nothing_comes
from fuse_tier.replicate.scrub import Scrubber
from fuse_tier.replicate.sparing import Sparing
from fuse_tier.replicate.succession import supersede
from fuse_tier.replicate.supervisor import Supervisor
from fuse_tier.replicate.surplus import Surplus
from fuse_tier.replicate.targets import Targets
from fuse_tier.replicate.upkeep import Upkeep
from fuse_tier.replicate.volume import Volume, VolumeOptions
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.replicate.warming import warm_once
from fuse_tier.restarts import Mark
from fuse_tier.tiers.bucket import bucket_of
from fuse_tier.tiers.peer import Introduction, PeerTier
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire import channel, grpc
from fuse_tier.wire.bulk.pacing import Link
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Sessions
from fuse_tier.wire.control_pb2_grpc import add_NodeServicer_to_server, add_PeerServicer_to_server
from fuse_tier.wire.replication_pb2_grpc import add_ReplicationServiceServicer_to_server
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

_HASHING_THREADS = 2
_FACTS_EVERY_SECONDS = 1.0


class Worker:
    """The parts of a worker, put together."""

    def __init__(self, config: NodeConfig, nursery: trio.Nursery) -> None:
        self._config = config
        self._nursery = nursery
        self._instance = secrets.token_hex(8)
        self._tls = TlsFiles(config.tls.ca, config.tls.cert, config.tls.key) if config.tls else None
        layout = Layout(config.ram.path)
        hashing = trio.CapacityLimiter(_HASHING_THREADS)
        self._ram = RamTier(layout, config.node)
        self._bucket = bucket = bucket_of(config)
        self._sessions = Sessions()
        self._link = Link(config.limits.bulk)
        self._marks = Marks(layout)
        knowledge = Knowledge(self._ram)
        self._holdings = OwnHoldings(self._ram, knowledge, self._pass_holdings_on)
        self._membership: Membership = build_membership(config, self._instance, self._facts)
        self._replication = ReplicationService(self._membership)
        self._places = Places(self._ram, self._membership, bucket, self._connect)
        self._duties = BucketDuties(config, bucket, self._membership, self._ram, self._tls) if bucket else None
        if self._duties is not None:
            self._duties.extend(self._places)
        options = VolumeOptions(config.node, config.settle, config.replicas)
        self._volumes = Volumes(layout, self._ram, options, hashing, nursery, has_bucket=bucket is not None)
        copier = Copier(self._ram)
        targets = Targets(self._membership, config.replicas)
        ownership = Ownership(self._membership, self._supersede)
        self._fanout = Fanout(self._places, copier, targets, ownership)
        self._orphans = Orphans(self._places, copier, targets, self._volumes.find, config.replicas)
        self._upkeep = Upkeep(self._places, knowledge, self._volumes.find, config.keep.ram)
        self._room = RoomKeeper(
            layout,
            self._ram,
            self._volumes,
            self._upkeep.wake,
            config.reserve,
            self._membership.needed,
            self._duties.backups.brings if self._duties else nothing_comes,
        )
        self._chooser = Chooser(self._places, self._marks.own)
        self._restorer = Restorer(layout, self._places, config.node, hashing, config.restore_at_once)
        self._filling = Filling(layout, self._ram, self._restorer, self._room.make)
        self._scrubber = Scrubber(self._ram, self._fetch_again, config.scrub.every, config.scrub.limit)
        self._supervisor = Supervisor(f"{config.socket}.supervisor")
        preparing = Preparing(self._chooser, self._restorer, self._membership)
        preparing.refresh = self._holdings.refresh
        preparing.ask_bucket = self._duties.steward.job_in_bucket if self._duties else None
        self._mounting = Mounting(self._volumes, preparing, self._membership, self._supervisor)
        self._mounting.before_release = self._holdings.refresh
        self._inventory = Inventory(
            config.node, config.cluster, self._places, self._volumes, copier, self._supervisor, config.replicas
        )
        self._resting = self._inventory.resting = Resting(
            layout,
            self._volumes,
            # Within the last ten seconds, or now.
            lambda: self._sessions.is_receiving or any(meter.rate() for meter in copier.meters.values()),
            huge_bytes_of(layout),
        )
        expecting = Expecting(self._ram, lambda identity: bool(self._mounted_on(identity) - {config.node}))
        self._sparing = self._inventory.sparing = Sparing(
            layout, self._volumes, self._resting.is_at_rest, expected=expecting.sizes
        )
        self._inventory.backups = self._duties.backups if self._duties else None
        self._preemption = Preemption(self._volumes, self._mounting, self._membership.report_soon, config.drain)
        surplus = Surplus(self._fanout)
        frameworks = self._frameworks = self._speak_to_frameworks(preparing)
        self._mounting.before_mount = frameworks.forget
        self._volumes.tasks = [
            ownership.keep,
            self._fanout.keep_peers,
            self._keep_bucket,
            self._pass_news_on,
            surplus.keep_down,
            Leftovers(Trees(layout, self._ram), self._membership).keep_down,
            self._filling.keep_filled,
            frameworks.watch,
        ]

    def _speak_to_frameworks(self, preparing: Preparing) -> Adapter:
        duties = self._duties

        def followed(identity: Identity, order: Order | None) -> None:
            if (volume := self._volumes.find(identity)) is not None:
                volume.framework = order.framework if order else ""
            if duties is not None:
                duties.follow(identity, order.backups if order else None)

        means = Means(
            preparing, self._chooser, self._restorer, self._membership, self._mounting.claim, duties is not None
        )
        self._in_place = InPlace(means)
        return Adapter(means, followed)

    def _mounted_on(self, identity: Identity) -> frozenset[str]:
        return frozenset(
            member.node for member in self._membership.members() if member.alive and identity in member.mounted
        )

    def _is_alive(self, node: str) -> bool:
        return any(member.node == node and member.alive for member in self._membership.members())

    async def _supersede(self, volume: Volume, by: str) -> None:
        await supersede(volume, self._ram, by)
        await self._mounting.give_up(volume)

    def _connect(self, member: Member) -> PeerTier:
        own = Introduction(self._config.cluster, self._config.node, self._instance)
        encrypt = self._config.encrypt_peer_traffic
        return PeerTier(member.node, member.control, own, self._tls, encrypt=encrypt, link=self._link)

    def _facts(self) -> LocalFacts:
        return LocalFacts(
            capacity_bytes=0 if self._preemption.is_leaving else self._ram.capacity_bytes(),
            free_bytes=0 if self._preemption.is_leaving else self._ram.free_bytes(),
            mounted=frozenset(self._mounting.claimed),
            holdings=self._holdings.numbers,
            bucket={volume.identity: (number,) for volume in self._volumes if (number := volume.copies.in_bucket())},
            epochs={volume.identity: volume.numbering.epoch for volume in self._volumes if volume.numbering.epoch},
            users={volume.identity: volume.user for volume in self._volumes if volume.user},
            saved=self._holdings.saved,
            resumed={
                volume.identity: replace(volume.resumption, is_over=not volume.is_at_work)
                for volume in self._volumes
                if volume.resumption is not None and not volume.superseded
            },
            marks=self._marks.own(),
            standings=self._duties.stewardship.standings() if self._duties else (),
            failing=self._duties.backups.failing(self._volumes) if self._duties else {},
            job_addresses=dict(self._replication.registered),
        )

    # ---- tasks ----

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Runs until cancelled; started when everything answers."""
        self._marks.load()
        self._ram.clear_incoming()
        await self._ram.collect(0)
        await self._holdings.refresh()
        await self._volumes.discover()
        await self._mounting.find_mounted()
        self._frameworks.begins.set()
        nursery, config = self._nursery, self._config
        await nursery.start(partial(self._membership.run))
        await nursery.start(self._serve_bulk)
        await nursery.start(self._serve_peers)
        await nursery.start(partial(channel.serve, f"{config.socket}.volumes", self._serve_daemon))
        if config.metrics is not None:
            await nursery.start(metrics.serve, config.metrics)
        if config.replication_api is not None:
            services = [(add_ReplicationServiceServicer_to_server, self._replication)]
            await nursery.start(grpc.serve, services, str(config.replication_api), None)
        nursery.start_soon(self._mounting.follow_found)
        nursery.start_soon(self._upkeep.run)
        nursery.start_soon(self._orphans.run)
        if config.preemption is not None:
            nursery.start_soon(self._preemption.watch, config.preemption)
        if self._duties is not None:
            nursery.start_soon(self._duties.stewardship.run)
        nursery.start_soon(self._room.run)
        nursery.start_soon(self._scrubber.run)
        nursery.start_soon(self._resting.run)
        nursery.start_soon(self._sparing.run)
        if config.ram.warm:
            nursery.start_soon(warm_once, Layout(config.ram.path))
        nursery.start_soon(self._pass_members_on)
        nursery.start_soon(self._keep_facts)
        await nursery.start(self._serve_operator)
        task_status.started()

    async def _serve_bulk(self, task_status: trio.TaskStatus[int]) -> None:
        address = str(self._config.listen.bulk)
        await serve_bulk(
            address, self._sessions, self._ram, self._ram, self._tls, link=self._link, task_status=task_status
        )

    async def _serve_peers(self, task_status: trio.TaskStatus[int]) -> None:
        service = PeerService(
            self._ram,
            self._sessions,
            self._membership.own,
            self._config.cluster,
            secure=self._tls is not None,
            encrypt=self._config.encrypt_peer_traffic,
            mounted_on=self._mounted_on,
            is_alive=self._is_alive,
            make_room=partial(self._room.make, for_replica=True),
        )
        services: list[Any] = [(add_PeerServicer_to_server, service)]
        if self._duties is not None:
            services += self._duties.services()
        config = self._config
        await grpc.serve(
            services, str(config.listen.control), self._tls, cluster=config.cluster, task_status=task_status
        )

    async def _serve_operator(self, task_status: trio.TaskStatus[int]) -> None:
        config = self._config
        service = NodeService(
            self._volumes,
            self._mounting,
            self._chooser,
            self._restorer,
            self._inventory,
            self._nursery,
            self._duties.stewardship if self._duties else None,
            self._mark_bad,
            self._membership,
            Planner(self._membership, self._ram),
            replicas=config.replicas,
            drain_seconds=config.drain,
        )
        await grpc.serve(
            [(add_NodeServicer_to_server, service)], f"unix:{config.socket}", None, task_status=task_status
        )

    async def _serve_daemon(self, stream: trio.SocketStream) -> None:
        session = DaemonSession(
            self._volumes.find,
            self._materialize,
            self._mounting.ended,
            self._in_place.begin_again,
            max(1, self._config.replicas),
            self._room,
        )
        await session.serve(stream)

    async def _mark_bad(self, job: Job, run: str, step: int) -> None:
        """A step is not restored any more, on any node."""
        await self._marks.add(frozenset({Mark(job, run, step, self._membership.clock())}))
        self._membership.report_soon()
        log.info("step.marked_bad", job=str(job), run=run, step=step)

    async def _fetch_again(self, blobs: Collection[Blob]) -> Mapping[Blob, TierError]:
        _, failed = await self._restorer.fetch("the scrub", blobs, self._ram, Chosen(None, ()))
        return failed

    async def _materialize(self, volume: Volume, inode: int) -> None:
        await self._filling.materialize(volume, inode)

    async def _keep_bucket(self, volume: Volume) -> None:
        if self._duties is not None:
            await self._fanout.keep_bucket(volume, self._duties.backups)

    async def _pass_news_on(self, volume: Volume) -> None:
        """What is new of a volume is of interest to retention and to the coordinator."""
        version = -1
        while True:
            version = await volume.news.wait_beyond(version)
            self._upkeep.wake.announce()

    async def _pass_members_on(self) -> None:
        """Who comes and goes changes where copies belong."""
        version = self._membership.version
        while True:
            version = await self._membership.wait_changed(version)
            await self._marks.add(self._membership.marks())
            for volume in self._volumes:
                volume.news.announce()

    async def _keep_facts(self) -> None:
        version = -1
        while True:
            with trio.move_on_after(_FACTS_EVERY_SECONDS):
                version = await self._upkeep.wake.wait_beyond(version)
            await self._holdings.refresh()
            metrics.ram(self._ram.capacity_bytes(), self._ram.free_bytes())
            metrics.queue_length(self._inventory.copies_waiting())

    def _pass_holdings_on(self) -> None:
        self._upkeep.wake.announce()
        self._membership.report_soon()

    async def drain(self) -> None:
        """Gives the newest snapshots the configured time to get where they shall be."""
        await self._preemption.drain()
        await self._membership.leave()

    async def aclose(self) -> None:
        """Ends the connections to others."""
        await self._places.aclose()
        if self._bucket is not None:
            await self._bucket.aclose()
