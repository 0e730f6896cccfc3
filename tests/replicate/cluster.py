"""A node's copies among peers that are tiers in memory: members come and go as a test says, by trio's clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from threading import Event

import trio

from fuse_tier.blobs import Blob, Progress, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.members import Domain, LocalFacts, Location, Member
from fuse_tier.replicate.copying import Copier
from fuse_tier.replicate.fanout import Fanout
from fuse_tier.replicate.own import OwnNode
from fuse_tier.replicate.ownership import Ownership
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.roster import RosterMembership
from fuse_tier.replicate.targets import Targets
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import TierName, no_progress
from fuse_tier.tiers.local import copy_blob
from fuse_tier.tiers.memory import MemoryTier
from tests.replicate.conftest import Bench

GIB = 1 << 30


class MemoryPeer(MemoryTier):
    """A peer's RAM. It copies without a thread, which virtual time would not wait for."""

    def __init__(self) -> None:
        super().__init__(TierName.PEER, "a peer")
        self.sent = 0  # blobs that it lacked

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        for blob in sorted(await self.missing(blobs)):
            copy_blob(blob, source, self.blobs, progress, Event())
            self.sent += 1

    async def refer(self, blobs: Sequence[Blob]) -> dict[Blob, str]:
        await trio.lowlevel.checkpoint()
        return {}

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class HangingPeer(MemoryPeer):
    """A peer that takes for ever to say what it lacks."""

    asked = 0

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        self.asked += 1
        return await trio.sleep_forever()


class UnreachablePeer(MemoryPeer):
    """A peer that is alive for others, and whom nothing reaches that is sent from here; as long as it is."""

    is_reached = False
    asked = 0

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        if self.is_reached:
            return await super().missing(blobs)
        self.asked += 1
        await trio.sleep(Deadline.CONTROL_CALL)
        raise TierUnavailable("no answer")


class SilentPeer(MemoryPeer):
    """A peer that does not answer: it has died, and nobody knows yet."""

    async def snapshots(self, identity: Identity | None = None) -> Sequence[SnapshotId]:
        raise TierUnavailable("no answer")


class SlowPeer(MemoryPeer):
    """A peer that takes minutes for everything that it is sent, and always takes some."""

    offered = 0

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        self.offered += 1
        for _ in range(60):
            progress(1)
            await trio.sleep(5)
        await super().store(blobs, source, progress)


class StandingMembership(RosterMembership):
    """Knows what a test tells it, and what the peers' tiers list, whether they answer or not."""

    def __init__(self, neighbourhood: Neighbourhood) -> None:
        self.facts = LocalFacts(GIB, GIB)
        super().__init__(OwnNode("a", "a1", "default", "a:1", "a:2", Domain(), lambda: self.facts, None))
        self._neighbourhood = neighbourhood
        self.successors: dict[Identity, str] = {}
        self.copied = 0
        self.doubtful: set[Identity] = set()
        self.silent: tuple[str, ...] = ()
        self.bucket: tuple[int, ...] = ()
        self.located = 0

    def report_soon(self) -> None:
        """Nobody is told."""

    async def claim(self, identity: Identity, above: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        self._claimed.add(identity)
        self._epochs[identity] = max(self.epoch(identity), above + 1 if above else 0)
        return self.epoch(identity)

    async def confirm(self, identity: Identity, above: int = 0) -> bool:
        if identity not in self.successors:
            await self.claim(identity, above)
            self.doubtful.discard(identity)
        return identity not in self.successors

    def is_doubtful(self, identity: Identity) -> bool:
        return identity in self.doubtful

    def grant(self, identity: Identity, epoch: int) -> None:
        """The coordinator's answer to a report has another epoch."""
        self._epochs[identity] = epoch

    async def release(self, identity: Identity) -> None:
        await trio.lowlevel.checkpoint()
        self._claimed.discard(identity)

    async def leave(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def locate(self, identity: Identity) -> Location:
        self.located += 1
        await trio.lowlevel.checkpoint()
        holders = []
        for member in self.members():
            listed = sorted(one for one in self._neighbourhood.peers[member.node].texts if one.identity == identity)
            if listed:
                holders.append((member, tuple(snapshot.number for snapshot in listed)))
        return Location(tuple(holders), self.bucket, copied=self.copied, silent=self.silent)

    def update(self, members: Iterable[Member]) -> None:
        self._roster.update(members)


class Neighbourhood:
    """Node ``a``, whose RAM tier is real, and its peers."""

    def __init__(self, bench: Bench, names: str, replicas: int) -> None:
        self.bench = bench
        self.peers = {name: MemoryPeer() for name in names}
        self.members = {name: Member(name, f"{name}1", f"{name}:1", f"{name}:2", True, GIB, GIB) for name in names}
        self.membership = StandingMembership(self)
        self.places = Places(bench.ram, self.membership, None, lambda member: self.peers[member.node])
        self.targets = Targets(self.membership, replicas)
        self.copier = Copier(bench.ram)
        self.superseded: list[str] = []
        self.ownership = Ownership(self.membership, self._supersede)
        self.fanout = Fanout(self.places, self.copier, self.targets, self.ownership)
        self._tell()

    async def _supersede(self, volume: Volume, by: str) -> None:
        await trio.lowlevel.checkpoint()
        volume.tenure.superseded = by
        self.superseded.append(by)

    def change(self, name: str, **changes: object) -> None:
        """A member is not what it was."""
        self.members[name] = replace(self.members[name], **changes)  # type: ignore[arg-type]
        self._tell()

    def lose(self, name: str) -> None:
        """A peer is gone with its RAM."""
        self.peers[name] = MemoryPeer()
        self.change(name, alive=False)

    def leave(self, name: str = "a") -> None:
        """A node is about to be taken away."""
        if name == "a":
            self.membership.facts = LocalFacts(0, 0)
        else:
            self.change(name, capacity_bytes=0, free_bytes=0)

    def come_back(self, name: str) -> None:
        """A peer runs again, as another instance."""
        self.change(name, alive=True, instance=f"{self.members[name].instance}+")

    def _tell(self) -> None:
        self.membership.update(self.members.values())
        self.bench.volume.news.announce()

    async def holders(self, number: int) -> set[str]:
        """Who lists a snapshot of the volume."""
        return {
            name
            for name, peer in self.peers.items()
            if number in [snapshot.number for snapshot in await peer.snapshots(self.bench.volume.identity)]
        }

    async def until_held(self, number: int, copies: int) -> set[str]:
        """Waits until so many live peers list a snapshot."""
        with trio.fail_after(60):
            while True:
                holders = {name for name in await self.holders(number) if self.members[name].alive}
                if len(holders) >= copies:
                    return holders
                await trio.sleep(0.05)
