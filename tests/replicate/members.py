"""Memberships on real sockets, with a coordinator in this process, or with peers only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.config import CoordinatorConfig, NodeConfig
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import LocalFacts, Member
from fuse_tier.replicate.membership import Membership, build_membership
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import add_PeerServicer_to_server
from fuse_tier.wire.grpc import Caller, serve
from fuse_tier.wire.members import PROTOCOL, domain_to_wire

LEASE = 2.0
NOTHING = LocalFacts(1000, 500)
LLAMA = Identity.parse("default/llama/0")
GEMMA = Identity.parse("default/gemma/0")


@dataclass
class Node:
    """A membership, the facts that it reports, and a control port that answers as a worker's would."""

    config: NodeConfig
    membership: Membership
    facts: LocalFacts
    scope: trio.CancelScope
    ended: trio.Event = field(default_factory=trio.Event)

    async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802 - its wire name
        return pb.HelloReply(
            protocol=PROTOCOL,
            cluster=self.config.cluster,
            node=self.config.node,
            instance=self.membership.own().instance,
            bulk=str(self.config.listen.bulk),
            mounted=sorted(map(str, self.membership.mounted())),
            capacity_bytes=1000,
            domain=domain_to_wire(self.membership.own().domain),
        )

    async def Snapshots(self, request: pb.SnapshotsRequest, caller: Caller) -> pb.SnapshotsReply:  # noqa: N802
        return pb.SnapshotsReply(
            ids=[
                f"{identity}@{number}"
                for identity, numbers in self.facts.holdings.items()
                if request.identity in ("", str(identity))
                for number in numbers
            ]
        )

    async def die(self) -> None:
        """Returns when its port takes no connections any more."""
        self.scope.cancel()
        await self.ended.wait()


class Cluster:
    """Nodes and a coordinator in this process, on real sockets."""

    def __init__(self, nursery: trio.Nursery, root: Path) -> None:
        self._nursery = nursery
        self._instances = 0
        self._root = root
        self.coordinator = f"127.0.0.1:{free_ports(1)[0]}"
        self._coordinator_scope = trio.CancelScope()
        self._coordinator_ended = trio.Event()

    async def start_coordinator(self, **more: Any) -> None:
        config = CoordinatorConfig.model_validate({"listen": self.coordinator, "lease": LEASE, **more})
        self._coordinator_scope, self._coordinator_ended = trio.CancelScope(), trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with self._coordinator_scope:
                await serve_coordinator(config, task_status=task_status)
            self._coordinator_ended.set()

        await self._nursery.start(run)

    async def stop_coordinator(self) -> None:
        self._coordinator_scope.cancel()
        await self._coordinator_ended.wait()

    async def start(
        self, name: str, *, config: NodeConfig | None = None, facts: LocalFacts = NOTHING, **more: Any
    ) -> Node:
        config = config or self.configure(name, **more)
        self._instances += 1
        membership = build_membership(config, f"{name}{self._instances}", lambda: node.facts)
        node = Node(config, membership, facts, trio.CancelScope())

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with node.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(serve, [(add_PeerServicer_to_server, node)], str(config.listen.control), None)
                    await nursery.start(node.membership.run)
                    task_status.started()
            node.ended.set()

        await self._nursery.start(run)
        return node

    def configure(self, name: str, **more: Any) -> NodeConfig:
        control, bulk = free_ports(2)
        ram = self._root / name
        ram.mkdir(exist_ok=True)
        return NodeConfig.model_validate(
            {
                "node": name,
                "ram": {"path": str(ram), "size": "1MiB"},
                "socket": "/nowhere/node.sock",
                "listen": {"control": f"127.0.0.1:{control}", "bulk": f"127.0.0.1:{bulk}"},
                **({} if "peers" in more else {"coordinator": self.coordinator}),
                **more,
            }
        )


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery, tmp_path)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raising(kind: type[FuseTierError], match: str) -> AsyncIterator[None]:
    """For what comes out of nurseries, in groups."""
    with pytest.raises(BaseExceptionGroup) as failed:
        yield
    assert failed.group_contains(kind, match=match)


async def until(membership: Membership, holds: Callable[[tuple[Member, ...]], bool]) -> tuple[Member, ...]:
    """Waits for a fact about the members."""
    version = -1
    while True:
        version = await membership.wait_changed(version)
        if holds(membership.members()):
            return membership.members()
