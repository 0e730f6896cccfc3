"""What a coordinator takes of a processor, and how soon it knows everything again: rows of ``fuse-tier bench``.

The coordinator is a process of its own, as it is deployed but for TLS. The nodes are simulated: each reports what a
worker does (``Correspondence``), over a stream of its own, at the pace that it is told, and saves a step a minute, of
which another node gets a copy. They are one job, a rank each. Where fewer connections than nodes may be open, several
share one.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from fuse_tier import epochs
from fuse_tier.bench.fleet import connect, most_connections
from fuse_tier.bench.frame import Figure, Row
from fuse_tier.checkpoints import Job, Saved
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.localcluster.node import until_so
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.services import LocalCoordinator
from fuse_tier.manifest import Lineage
from fuse_tier.members import Domain, LocalFacts, Report
from fuse_tier.replicate.correspondence import Correspondence
from fuse_tier.wire import control_pb2 as pb

_REPORTS: Final = "/fuse_tier.v1.Coordinator/Reports"
_SAVE_SECONDS: Final = 60.0
_SPREAD_SECONDS: Final = 5.0  # until what came at once is spread
_MEASURED_SECONDS: Final = 24.0  # more than a pause between reports; each node's minute has another beginning
_AT_ONCE: Final = 256  # nodes that come up at one moment
_RETRY_SECONDS: Final = 1.0  # as a worker does, and as long as it waits for more news
_MERGED_PART: Final = 20
_PATIENCE_SECONDS: Final = 200.0
_LIMIT_CORES: Final = 0.5
_LIMIT_RECOVERY_SECONDS: Final = 5.0
_JOB: Final = Job("default", "llama")
_GIB: Final = 1 << 30

_Stream = Callable[[pb.ReportRequest], Awaitable[pb.ReportReply]]


class _Letters(Correspondence):
    """A worker's, but that a roster is not kept: ten thousand of ten thousand nodes are too many for one process."""

    @property
    def version(self) -> int:
        """Of the roster that was told last."""
        return self._roster_version

    def enter(self, roster: bytes) -> int:
        version: int = pb.Roster.FromString(roster).version
        return version

    def share(self, other: _Letters) -> None:
        """Knows of everybody what the other one was told."""
        self._roster_life, self._roster_version = other._roster_life, other._roster_version


@dataclass(slots=True)
class _Node:
    """One node as the coordinator sees it."""

    number: int
    of: int
    epoch: int
    saved: dict[Identity, tuple[Saved, ...]] = field(default_factory=dict)
    sequence: int = 0
    letters: _Letters = field(default_factory=lambda: _Letters("default"))
    term: int = 0
    news: trio.Event = field(default_factory=trio.Event)
    heard: trio.Event = field(default_factory=trio.Event)

    @property
    def own(self) -> Identity:
        return _JOB.identity(str(self.number))

    def list_step(self, identity: Identity, step: int) -> None:
        """A snapshot is here; the one before the last is given up."""
        lineage = Lineage(_JOB.workload, world_size=self.of)
        snapshot = SnapshotId(identity, epochs.number_before(self.epoch) + step + 1)
        saved = Saved(snapshot, lineage, step, time.time_ns(), _GIB)
        self.saved[identity] = (*self.saved.get(identity, ())[-1:], saved)
        self.news.set()

    def report(self) -> Report:
        self.sequence += 1
        facts = LocalFacts(
            16 * _GIB,
            8 * _GIB - self.sequence,
            mounted=frozenset({self.own}),
            holdings={one: tuple(saved.id.number for saved in several) for one, several in self.saved.items()},
            epochs={self.own: self.epoch},
            saved=dict(self.saved),
        )
        address = f"10.{self.number >> 16}.{self.number >> 8 & 255}.{self.number & 255}"
        return Report(
            node=f"node-{self.number}",
            instance="1",
            sequence=self.sequence,
            control=f"{address}:7460",
            bulk=f"{address}:7461",
            facts=facts,
            domain=Domain("zone", f"pool-{self.number // 500}", address),
            clock=self.epoch,
            lease_seconds=self.letters.lease_seconds if self.letters.life else 0.0,
        )

    async def say(self, stream: _Stream) -> None:
        """Reports, once more where the coordinator does not know what has been told before."""
        while True:
            report = self.report()
            reply = await stream(self.letters.request(report, self.term))
            if not reply.unknown:
                break
            self.letters.repeat()
        self.letters.take(report, reply)
        self.term = reply.term
        self.heard.set()
        self.heard = trio.Event()

    async def live(self, stream: _Stream) -> None:
        """Reports whenever it is due, or something is new. Raises TierUnavailable with the connection."""
        while True:
            with trio.move_on_after(self.letters.pause_seconds):
                await self.news.wait()
            await trio.sleep(self.letters.pause_seconds / _MERGED_PART)
            self.news = trio.Event()
            await self.say(stream)


class _Fleet:
    """All nodes, whose reports begin with ``begin`` and go on until it is cancelled."""

    def __init__(self, address: str, nodes: int) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        epoch = epochs.from_the_time()
        self.nodes = [_Node(number, nodes, epoch) for number in range(nodes)]
        self._reporting = 0  # nodes whose first report was answered
        self._all_report = trio.Event()
        for node in self.nodes:
            for step in (0, 1):
                self._save(node, step)

    def _save(self, node: _Node, step: int) -> None:
        node.list_step(node.own, step)
        self.nodes[node.number - 1].list_step(node.own, step)

    async def begin(self, nursery: trio.Nursery) -> None:
        """Returns when every node has reported once."""
        places = trio.CapacityLimiter(_AT_ONCE)
        for part in self._parts():
            nursery.start_soon(self._keep_reporting, part, places)
        with trio.fail_after(_PATIENCE_SECONDS):
            await self._all_report.wait()

    async def until_another_has_heard_all(self, life: str) -> None:
        """Returns when no node has its last answer from that life of the coordinator."""
        with trio.fail_after(_PATIENCE_SECONDS):
            for node in self.nodes:
                while node.letters.life == life:
                    await node.heard.wait()

    async def share_the_roster(self) -> None:
        """One node is told of all others, and the rest knows what it was told: one after another takes a minute."""
        first, *others = self.nodes
        with trio.fail_after(_PATIENCE_SECONDS):
            while first.letters.version < len(self.nodes):
                first.news.set()
                await first.heard.wait()
        for node in others:
            node.letters.share(first.letters)

    def _parts(self) -> list[list[_Node]]:
        connections = most_connections(len(self.nodes))
        return [self.nodes[number::connections] for number in range(connections)]

    async def _keep_reporting(self, nodes: list[_Node], places: trio.CapacityLimiter) -> None:
        """These share a connection, and make another one when it breaks."""
        is_first = True
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    async with places:
                        wire = await connect(self._host, self._port, nursery)
                        streams = [wire.converse(_REPORTS, pb.ReportReply) for _ in nodes]
                        for node, stream in zip(nodes, streams, strict=True):
                            node.letters.repeat()
                            await node.say(stream)
                            self._count(is_first)
                    is_first = False
                    await self._all_report.wait()  # else those that are up already slow down who comes
                    for node, stream in zip(nodes, streams, strict=True):
                        nursery.start_soon(node.live, stream)
            except* TierUnavailable:
                await trio.sleep(_RETRY_SECONDS)

    def _count(self, is_first: bool) -> None:
        self._reporting += is_first
        if self._reporting == len(self.nodes):
            self._all_report.set()

    async def save(self) -> None:
        """Each node saves once a minute, one after another; runs until cancelled."""
        begun, step = trio.current_time(), 2
        while True:
            for node in self.nodes:
                await trio.sleep_until(begun + (step - 2 + node.number / len(self.nodes)) * _SAVE_SECONDS)
                self._save(node, step)
            step += 1


@asynccontextmanager
async def _coordinator(directory: Path) -> AsyncIterator[LocalCoordinator]:
    directory.mkdir()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    coordinator = LocalCoordinator(address, directory / "coordinator", {"listen": address}, None)
    await coordinator.start()
    try:
        yield coordinator
    finally:
        with trio.CancelScope(shield=True):
            await coordinator.kill()


async def _share_of_a_core(directory: Path) -> Figure:
    async with _coordinator(directory / "c") as coordinator, trio.open_nursery() as nursery:
        fleet = _Fleet(coordinator.address, 10_000)
        await fleet.begin(nursery)
        nursery.start_soon(fleet.save)
        await fleet.share_the_roster()
        await trio.sleep(_SPREAD_SECONDS)
        begun, used = time.perf_counter(), _processor_seconds(coordinator.family.pid)
        await trio.sleep(_MEASURED_SECONDS)
        share = (_processor_seconds(coordinator.family.pid) - used) / (time.perf_counter() - begun)
        alive = sum(member.alive for member in (await coordinator.picture()).members)
        if alive != len(fleet.nodes):
            raise FuseTierError(f"{alive} of {len(fleet.nodes)} nodes are alive for the coordinator")
        nursery.cancel_scope.cancel()
    return Figure(share, _LIMIT_CORES, f"{most_connections(10_000)} connections")


def _processor_seconds(pid: int) -> float:
    """Of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _recovery_seconds(directory: Path) -> Figure:
    async with _coordinator(directory / "c") as coordinator, trio.open_nursery() as nursery:
        fleet = _Fleet(coordinator.address, 1_000)
        await fleet.begin(nursery)
        expected = _known(await coordinator.picture())
        if len(expected) != len(fleet.nodes):
            raise FuseTierError(f"the coordinator knows of {len(expected)} nodes")
        seconds = []
        for _ in range(3):
            life = fleet.nodes[0].letters.life
            await coordinator.kill()
            begun = time.perf_counter()
            await coordinator.start()
            await fleet.until_another_has_heard_all(life)  # before that a look at the picture is in the way of others

            async def is_complete() -> bool:
                return _known(await coordinator.picture()) == expected

            await until_so(coordinator.family, is_complete)
            seconds.append(time.perf_counter() - begun)
        nursery.cancel_scope.cancel()
    return Figure(sorted(seconds)[1], _LIMIT_RECOVERY_SECONDS)


def _known(picture: pb.PictureReply) -> dict[str, frozenset[tuple[str, int]]]:
    """What each live node holds."""
    held: dict[str, set[tuple[str, int]]] = {member.node: set() for member in picture.members if member.alive}
    for volume in picture.volumes:
        for holder in volume.holders:
            if holder.member.node in held:
                held[holder.member.node].update((volume.identity, number) for number in holder.numbers)
    return {node: frozenset(snapshots) for node, snapshots in held.items()}


ROWS: Final = (
    Row("coordinator.cpu", "cores", "limit", _share_of_a_core),
    Row("coordinator.recovery", "s", "limit", _recovery_seconds),
)
