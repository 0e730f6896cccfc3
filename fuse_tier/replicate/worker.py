"""The replication worker of one node: everything but the mounts.

Here its parts are put together; ``__main__.py`` runs it as a process. One nursery owns every task.

The start is in this order for a reason: garbage is collected before anything is adopted (ram/pins.py); what is
mounted is known before others are told what is mounted here.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from functools import partial

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.config import NodeConfig
from fuse_tier.errors import TierError
from fuse_tier.members import Member
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.agreeing import Agreeing
from fuse_tier.replicate.bucket_duties import BucketDuties
from fuse_tier.replicate.choice import Chooser, Chosen
from fuse_tier.replicate.copying import Copier
from fuse_tier.replicate.daemons import DaemonSession
from fuse_tier.replicate.doors import BulkDoor, Doors
from fuse_tier.replicate.expecting import Expecting
from fuse_tier.replicate.facts import Facts
from fuse_tier.replicate.fanout import Fanout
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.filling import Filling
from fuse_tier.replicate.frameworks import Frameworks
from fuse_tier.replicate.holdings import OwnHoldings
from fuse_tier.replicate.inventory import Inventory
from fuse_tier.replicate.knowledge import Knowledge
from fuse_tier.replicate.leftovers import Leftovers
from fuse_tier.replicate.marks import Marks
from fuse_tier.replicate.membership import Membership, build_membership, is_alive, mounted_on
from fuse_tier.replicate.mounting import Mounting
from fuse_tier.replicate.node_service import NodeService
from fuse_tier.replicate.orphans import Orphans
from fuse_tier.replicate.ownership import Ownership
from fuse_tier.replicate.peer_service import PeerService
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.planning import Planner
from fuse_tier.replicate.preemption import Preemption
from fuse_tier.replicate.preparing import Preparing
from fuse_tier.replicate.protocol.cycle import Means
from fuse_tier.replicate.protocol.service import ReplicationService
from fuse_tier.replicate.regaining import Regaining
from fuse_tier.replicate.replacing import Trees
from fuse_tier.replicate.resting import Resting, huge_bytes_of
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.room import KeptSpares, RoomKeeper, nothing_comes
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
from fuse_tier.tiers.bucket import bucket_of
from fuse_tier.tiers.peer import Introduction, PeerTier
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire.bulk.pacing import Link
from fuse_tier.wire.bulk.sessions import Sessions
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
        self._membership: Membership = build_membership(config, self._instance, lambda: self._facts.now())
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
        self._fetcher = Fetcher(self._places, config.node)
        self._restorer = Restorer(layout, self._ram, self._fetcher, hashing, config.restore_at_once)
        make_beside_pieces = partial(self._room.make, kept=KeptSpares.PIECES)
        self._filling = Filling(layout, self._ram, self._fetcher, self._room.make, make_beside_pieces)
        self._scrubber = Scrubber(self._ram, self._fetch_again, config.scrub.every, config.scrub.limit)
        self._supervisor = Supervisor(f"{config.socket}.supervisor")
        agreeing = Agreeing(self._membership)
        agreeing.refresh = self._holdings.refresh
        agreeing.ask_bucket = self._duties.steward.job_in_bucket if self._duties else None
        preparing = Preparing(self._chooser, self._restorer, self._membership, agreeing)
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
        expecting = Expecting(self._ram, lambda identity: bool(mounted_on(self._membership, identity)))
        self._sparing = self._inventory.sparing = Sparing(
            layout,
            self._volumes,
            self._resting.is_at_rest,
            expected=expecting.sizes,
            keeps_pieces=config.ram.warm,
        )
        self._inventory.backups = self._duties.backups if self._duties else None
        self._preemption = Preemption(
            self._volumes, self._mounting, self._orphans, copier, self._membership.report_soon, config.drain
        )
        self._facts = Facts(
            self._ram,
            self._volumes,
            self._mounting,
            self._holdings,
            self._marks,
            self._membership,
            self._upkeep,
            self._inventory,
            self._preemption,
            self._replication,
            self._duties,
        )
        surplus = Surplus(self._fanout)
        means = Means(
            agreeing, self._chooser, self._restorer, self._membership, self._mounting.claim, bucket is not None
        )
        self._frameworks = Frameworks(means, self._volumes, self._duties)
        self._mounting.before_mount = self._frameworks.adapter.forget
        self._volumes.tasks = [
            ownership.keep,
            self._fanout.keep_peers,
            self._keep_bucket,
            self._facts.pass_news_on,
            surplus.keep_down,
            Leftovers(Trees(layout, self._ram), self._membership).keep_down,
            self._filling.keep_filled,
            Regaining(self._places, self._fetcher, self._room.make).keep_asking,
            self._frameworks.adapter.watch,
        ]
        self._doors = self._build_doors()

    def _build_doors(self) -> Doors:
        config, duties = self._config, self._duties
        peer = PeerService(
            self._ram,
            self._sessions,
            self._membership.own,
            config.cluster,
            secure=self._tls is not None,
            encrypt=config.encrypt_peer_traffic,
            mounted_on=partial(mounted_on, self._membership),
            locate=self._membership.locate,
            is_alive=partial(is_alive, self._membership),
            make_room=partial(self._room.make, for_replica=True, kept=KeptSpares.PIECES),
        )
        operator = NodeService(
            self._volumes,
            self._mounting,
            self._chooser,
            self._fetcher,
            self._inventory,
            self._nursery,
            duties.stewardship if duties else None,
            self._marks,
            self._membership,
            Planner(self._membership, self._ram),
            replicas=config.replicas,
            drain_seconds=config.drain,
        )
        return Doors(
            config,
            self._tls,
            BulkDoor(self._sessions, self._ram, self._link),
            peer,
            tuple(duties.services()) if duties else (),
            operator,
            self._replication,
            self._serve_daemon,
        )

    async def _supersede(self, volume: Volume, by: str) -> None:
        await supersede(volume, self._ram, by)
        await self._mounting.give_up(volume)

    def _connect(self, member: Member) -> PeerTier:
        own = Introduction(self._config.cluster, self._config.node, self._instance)
        encrypt = self._config.encrypt_peer_traffic
        return PeerTier(member.node, member.control, own, self._tls, encrypt=encrypt, link=self._link)

    # ---- tasks ----

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Runs until cancelled; started when everything answers."""
        self._marks.load()
        self._ram.clear_incoming()
        await self._ram.collect(0)
        await self._holdings.refresh()
        await self._volumes.discover()
        await self._mounting.find_mounted()
        self._frameworks.adapter.begins.set()
        nursery, config = self._nursery, self._config
        await nursery.start(partial(self._membership.run))
        await self._doors.open(nursery)
        for task in (
            self._mounting.follow_found,
            self._upkeep.run,
            self._orphans.run,
            self._room.run,
            self._scrubber.run,
            self._resting.run,
            self._sparing.run,
            self._facts.pass_members_on,
            self._facts.keep,
        ):
            nursery.start_soon(task)
        if config.preemption is not None:
            nursery.start_soon(self._preemption.watch, config.preemption)
        if self._duties is not None:
            nursery.start_soon(self._duties.stewardship.run)
        if config.ram.warm:
            nursery.start_soon(warm_once, Layout(config.ram.path))
        await self._doors.open_to_operator(nursery)
        task_status.started()

    async def _serve_daemon(self, stream: trio.SocketStream) -> None:
        session = DaemonSession(
            self._volumes.find,
            self._filling.materialize,
            self._mounting.ended,
            self._frameworks.in_place.begin_again,
            max(1, self._config.replicas),
            self._room,
        )
        await session.serve(stream)

    async def _fetch_again(self, blobs: Collection[Blob]) -> Mapping[Blob, TierError]:
        _, failed = await self._fetcher.fetch("the scrub", blobs, self._ram, Chosen(None, ()))
        return failed

    async def _keep_bucket(self, volume: Volume) -> None:
        if self._duties is not None:
            await self._fanout.keep_bucket(volume, self._duties.backups)

    def _pass_holdings_on(self) -> None:
        self._upkeep.wake.announce()
        self._membership.report_soon()

    async def drain(self) -> None:
        """Gives the newest snapshots the configured time to get where they shall be."""
        await self._preemption.end()
        await self._membership.leave()

    async def aclose(self) -> None:
        """Ends the connections to others."""
        await self._places.aclose()
        if self._bucket is not None:
            await self._bucket.aclose()
