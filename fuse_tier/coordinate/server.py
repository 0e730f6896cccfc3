"""A coordinator as a process: its parts, their start and their end."""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Callable, Sequence
from functools import partial

import structlog
import trio

from fuse_tier import epochs, metrics
from fuse_tier.checkpoints import Job
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.fencing import Fence
from fuse_tier.coordinate.milestones import Observer
from fuse_tier.coordinate.service import CoordinatorService
from fuse_tier.members import Domain
from fuse_tier.restarts import Wish
from fuse_tier.wire.control_pb2_grpc import add_CoordinatorServicer_to_server
from fuse_tier.wire.grpc import SELDOM_KEEPALIVE_SECONDS, Service, serve
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

_MOST_NODES = 20_000
_DESCRIPTORS = 3  # of a connection: the node's, and two of the one to gRPC
_OTHER_DESCRIPTORS = 256
_CALLS = 3  # of a node at once: its stream of reports, its question for a rank, and another one
_COLLECT_AFTER = (20_000, 20, 20)  # containers made, and collections of the younger before one of the older


async def run_coordinator(config: CoordinatorConfig) -> None:
    """Serves until SIGTERM or SIGINT. Raises a group with a ConfigError when it cannot listen."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_coordinator, config)
            async for received in signals:
                log.info("coordinator.stopping", signal=signal.Signals(received).name)
                break
            nursery.cancel_scope.cancel()


async def serve_coordinator(
    config: CoordinatorConfig,
    more: Sequence[Service] = (),
    domain_of: Callable[[str], Domain] | None = None,
    fence: Fence | None = None,
    observers: Sequence[Observer] = (),
    wish_of: Callable[[Job], Wish | None] = lambda _: None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; started when it listens. ``more`` services are reached at the same address.

    ``domain_of``: see Directory. ``fence`` is that of one that was elected; ``observers`` are told of jobs;
    ``wish_of``: see Restarts. Raises a group with Superseded when another has taken over.
    """
    tls = TlsFiles(config.tls.ca, config.tls.cert, config.tls.key) if config.tls else None
    directory = Directory(config.lease, trio.current_time(), epochs.from_the_time(), domain_of)
    fence = fence or Fence(epochs.from_the_time())
    service = CoordinatorService(
        config.cluster, directory, fence, authenticated=tls is not None, observers=observers, wish_of=wish_of
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fence.watch)
        nursery.start_soon(service.keep_leases)
        nursery.start_soon(service.keep_standings)
        if config.metrics:
            await nursery.start(metrics.serve, config.metrics)
        services = [(add_CoordinatorServicer_to_server, service), *more]
        serving = partial(
            serve,
            most_connections=_most_connections(),
            most_calls=_CALLS * _MOST_NODES,
            keepalive_seconds=SELDOM_KEEPALIVE_SECONDS,
        )
        await nursery.start(serving, services, str(config.listen), tls)
        log.info("coordinator.serving", address=str(config.listen), cluster=config.cluster, life=directory.life)
        task_status.started()


def collect_seldom() -> None:
    """Of this process: what reports replace goes by its count of references, and cycles are few.

    Looking for cycles goes through all that is known of all nodes, which costs more than the reports themselves.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _most_connections() -> int:
    """As many as there may be nodes, if the process may open as many descriptors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = _DESCRIPTORS * _MOST_NODES + _OTHER_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return max(1, min(_MOST_NODES, (most - _OTHER_DESCRIPTORS) // _DESCRIPTORS))
