"""The plugin's process, put together: its socket, what it mends at the start, its metrics."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import structlog
import trio

from csi.csi_pb2_grpc import add_IdentityServicer_to_server, add_NodeServicer_to_server
from csi.driver import Driver
from csi.health import Health
from csi.mending import mend
from csi.places import NoRanks, Ranks
from csi.publishing import Publisher
from csi.records import Records
from csi.services import IdentityService, NodeService
from fuse_tier import metrics
from fuse_tier.config import Address, NodeConfig
from fuse_tier.errors import ConfigError
from fuse_tier.fs.syscalls import raise_descriptor_limit
from fuse_tier.node.claims import refuse_taken_socket
from fuse_tier.node.keepers import place_of
from fuse_tier.node.parts import in_turn, insist
from fuse_tier.node.priority import KEEPING, protect
from fuse_tier.node.turns import Turn
from fuse_tier.node.vault import Vault
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
    vault = Vault(place_of(config.socket))
    health = Health(driver, records)
    publisher = Publisher(driver, records, assigner, vault, health, jax_init_info=settings.jax_init_info)
    node = NodeService(
        driver,
        publisher,
        records,
        health,
        kubelet=settings.kubelet,
        volume_limit=settings.volume_limit,
    )
    services: list[grpc.Service] = [
        (add_IdentityServicer_to_server, IdentityService(driver, settings.driver_name)),
        (add_NodeServicer_to_server, node),
    ]

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            if settings.metrics is not None:
                await nursery.start(metrics.serve, settings.metrics)
            # First of all: while nobody has copies, the end of the fuse container would end its mounts.
            nursery.start_soon(vault.run)

            async def answer(task_status: trio.TaskStatus[int]) -> None:
                await grpc.serve(services, f"unix:{settings.endpoint}", None, task_status=task_status)

            await nursery.start(answer)
            nursery.start_soon(health.run)
            nursery.start_soon(mend, settings.kubelet, driver, publisher, records)
            log.info("plugin.ready", node=config.node, socket=settings.endpoint)

    async def work() -> None:
        await insist(lambda: _refuse_taken(settings.endpoint), "plugin.waits")
        await serve()

    raise_descriptor_limit()
    protect(KEEPING)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await in_turn(Turn(config.socket), signals, work)
    log.info("plugin.ended", node=config.node)


async def _refuse_taken(endpoint: str) -> None:
    """The plugin of a pod that this one replaces ends its service when it finds that out."""
    refuse_taken_socket(endpoint)


def _check(settings: Settings) -> None:
    if not os.path.isdir(settings.kubelet):
        raise ConfigError(f"--kubelet: {settings.kubelet} is no directory: mount kubelet's into this container")
    if (there := os.path.realpath(settings.kubelet)) != settings.kubelet:
        # The mount table knows no symlinks, and is what says which volumes are there.
        raise ConfigError(f"--kubelet: {settings.kubelet} leads to {there} by a symlink: bind-mount it there instead")
    try:
        os.makedirs(os.path.dirname(settings.endpoint), exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--endpoint: its directory cannot be made: {error.strerror}") from error
