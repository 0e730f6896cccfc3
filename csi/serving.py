"""The plugin's process, put together: its socket, what it mends at the start, its metrics."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import structlog
import trio

from csi.csi_pb2_grpc import add_IdentityServicer_to_server, add_NodeServicer_to_server
from csi.driver import Driver
from csi.mending import mend
from csi.places import NoRanks, Ranks
from csi.publishing import Publisher
from csi.records import Records
from csi.services import IdentityService, NodeService
from fuse_tier import metrics
from fuse_tier.config import Address, NodeConfig
from fuse_tier.errors import ConfigError
from fuse_tier.wire import grpc

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the plugin is told on its command line."""

    endpoint: str
    """Path of its socket."""
    kubelet: str
    """Kubelet's directory, without a slash at its end."""
    driver_name: str
    volume_limit: int
    jax_init_info: bool
    metrics: Address | None = None


async def run_plugin(config: NodeConfig, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Volumes stay as they are. Raises ConfigError."""
    _check(settings)
    driver = Driver(config)
    records = Records(f"{config.socket}.published")
    assigner = Ranks(config) if config.coordinator else NoRanks()
    publisher = Publisher(driver, records, assigner, jax_init_info=settings.jax_init_info)
    node = NodeService(
        driver,
        publisher,
        records,
        kubelet=settings.kubelet,
        domain=config.domain,
        volume_limit=settings.volume_limit,
    )
    services: list[grpc.Service] = [
        (add_IdentityServicer_to_server, IdentityService(driver, settings.driver_name)),
        (add_NodeServicer_to_server, node),
    ]
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if settings.metrics is not None:
                await nursery.start(metrics.serve, settings.metrics)
            nursery.start_soon(mend, settings.kubelet, driver, publisher, records)

            async def serve(task_status: trio.TaskStatus[int]) -> None:
                await grpc.serve(services, f"unix:{settings.endpoint}", None, task_status=task_status)

            await nursery.start(serve)
            log.info("plugin.ready", node=config.node, socket=settings.endpoint)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    log.info("plugin.ended", node=config.node)


def _check(settings: Settings) -> None:
    if not os.path.isdir(settings.kubelet):
        raise ConfigError(f"--kubelet: {settings.kubelet} is no directory: mount kubelet's into this container")
    try:
        os.makedirs(os.path.dirname(settings.endpoint), exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--endpoint: its directory cannot be made: {error.strerror}") from error
