"""The ranks server as a process: a coordinator that knows pods and their ranks, too."""

from __future__ import annotations

import signal

import structlog
import trio
from kubernetes.client import ApiClient

from controller.ranks.book import RankBook
from controller.ranks.followers import followed
from controller.ranks.service import RanksService
from csi.ranks_pb2_grpc import add_RanksServiceServicer_to_server
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.server import serve_coordinator

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
    service = RanksService(book, authenticated=config.tls is not None)
    async with trio.open_nursery() as nursery:
        for collection in followed(api, driver, book):
            await nursery.start(collection.follow)
        await nursery.start(
            serve_coordinator, config, [(add_RanksServiceServicer_to_server, service)], book.domain_of
        )
        task_status.started()
