"""The ranks server as a process: a coordinator that knows pods and their ranks, too."""

from __future__ import annotations

import signal

import structlog
import trio
from kubernetes.client import ApiClient

from controller.ranks.book import RankBook
from controller.ranks.checkpoints import Checkpoints
from controller.ranks.events import COMPONENT, JobEvents
from controller.ranks.followers import followed
from controller.ranks.service import RanksService
from controller.writing import Writer
from csi.ranks_pb2_grpc import add_RanksServiceServicer_to_server
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.server import serve_coordinator

_CALLS_PER_SECOND = 20

log = structlog.get_logger(__name__)


async def run_ranks_server(api: ApiClient, driver: str, config: CoordinatorConfig) -> None:
    """Serves until SIGTERM or SIGINT. Raises a group with a ConfigError when it cannot listen."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_ranks, api, driver, config)
            async for received in signals:
                log.info("ranks.stopping", signal=signal.Signals(received).name)
                break
            nursery.cancel_scope.cancel()


async def serve_ranks(
    api: ApiClient,
    driver: str,
    config: CoordinatorConfig,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; started when the API server has told of everything that there is."""
    book = RankBook()
    writer = Writer(api, _CALLS_PER_SECOND, manager=COMPONENT)
    checkpoints, events = Checkpoints(api, writer), JobEvents(writer, book)
    service = RanksService(book, authenticated=config.tls is not None)
    async with trio.open_nursery() as nursery:
        for collection in followed(api, driver, book):
            await nursery.start(collection.follow)
        nursery.start_soon(checkpoints.run)
        nursery.start_soon(events.run)
        services = [(add_RanksServiceServicer_to_server, service)]
        await nursery.start(serve_coordinator, config, services, book.domain_of, [checkpoints, events])
        task_status.started()
