"""Through what others come in: peers by two ports, mount daemons and the operator by unix sockets, training jobs and
Prometheus by local ports. What is behind each door the worker puts there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from fuse_tier import metrics
from fuse_tier.config import NodeConfig
from fuse_tier.replicate.node_service import NodeService
from fuse_tier.replicate.peer_service import CARRIERS, PeerService
from fuse_tier.replicate.protocol.service import ReplicationService
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire import channel, grpc
from fuse_tier.wire.bulk.pacing import Link
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Sessions
from fuse_tier.wire.control_pb2_grpc import add_NodeServicer_to_server, add_PeerServicer_to_server
from fuse_tier.wire.replication_pb2_grpc import add_ReplicationServiceServicer_to_server
from fuse_tier.wire.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class BulkDoor:
    """What content goes in and out by."""

    sessions: Sessions
    ram: RamTier
    link: Link


@dataclass(frozen=True, slots=True)
class Doors:
    """Of one node. ``beside`` are services that peers reach beside ``Peer``."""

    config: NodeConfig
    tls: TlsFiles | None
    bulk: BulkDoor
    peer: PeerService
    beside: tuple[Any, ...]
    operator: NodeService
    replication: ReplicationService
    serve_daemon: Callable[[trio.SocketStream], Awaitable[None]]

    async def open(self, nursery: trio.Nursery) -> None:
        """Returns when all answer but the operator's: that is the last, and says that the node is ready."""
        config = self.config
        await nursery.start(self._serve_bulk)
        await nursery.start(self._serve_peers)
        await nursery.start(partial(channel.serve, f"{config.socket}.volumes", self.serve_daemon))
        if config.metrics is not None:
            await nursery.start(metrics.serve, config.metrics)
        if config.replication_api is not None:
            services = [(add_ReplicationServiceServicer_to_server, self.replication)]
            await nursery.start(grpc.serve, services, str(config.replication_api), None)

    async def open_to_operator(self, nursery: trio.Nursery) -> None:
        """Returns when the node's own socket answers."""
        services = [(add_NodeServicer_to_server, self.operator)]
        await nursery.start(grpc.serve, services, f"unix:{self.config.socket}", None)

    async def _serve_bulk(self, task_status: trio.TaskStatus[int]) -> None:
        bulk, address = self.bulk, str(self.config.listen.bulk)
        await serve_bulk(
            address, bulk.sessions, bulk.ram, bulk.ram, self.tls, link=bulk.link, task_status=task_status
        )

    async def _serve_peers(self, task_status: trio.TaskStatus[int]) -> None:
        services = [(add_PeerServicer_to_server, self.peer), *self.beside]
        address, cluster = str(self.config.listen.control), self.config.cluster
        serving = partial(grpc.serve, cluster=cluster, carriers=CARRIERS)
        await serving(services, address, self.tls, task_status=task_status)
