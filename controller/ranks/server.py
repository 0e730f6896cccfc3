"""The ranks server as a process: a coordinator that knows pods and their ranks, too; of several the elected one.

Who waits for the lease follows the API server all the while, so that it knows every pod when its turn comes. What
nodes have they tell whoever leads, within a lease of theirs.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio
from kubernetes.client import ApiClient

from controller.election import Election, Times
from controller.ranks.addresses import JobAddressMaps
from controller.ranks.book import RankBook
from controller.ranks.checkpoints import Checkpoints
from controller.ranks.events import COMPONENT, JobEvents
from controller.ranks.followers import followed, jobsets
from controller.ranks.service import RanksService
from controller.ranks.sign import Sign
from controller.writing import Writer
from csi.ranks_pb2_grpc import add_RanksServiceServicer_to_server
from fuse_tier import epochs, metrics
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.fencing import Fence
from fuse_tier.coordinate.milestones import Observer
from fuse_tier.coordinate.server import serve_coordinator

log = structlog.get_logger(__name__)

LEASE = "high-scale-checkpointing-ranks"
TIMES = Times(lease=8.0, renew_deadline=5.0, retry=1.5)  # jobs wait for the next one


@dataclass(frozen=True, slots=True)
class Serving:
    """How a ranks server is run."""

    driver: str
    config: CoordinatorConfig
    namespace: str = ""  # of its lease and of its pod; empty: it is the only one, and asks for no lease
    pod: str = ""
    calls_per_second: float = 150.0
    times: Times = field(default_factory=lambda: TIMES)


async def run_ranks_server(api: ApiClient, serving: Serving) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises a group with a ConfigError when it cannot listen, with LeadershipLost, or with Superseded.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_ranks, api, serving)
            async for received in signals:
                log.info("ranks.stopping", signal=signal.Signals(received).name)
                break
            nursery.cancel_scope.cancel()


async def serve_ranks(
    api: ApiClient, serving: Serving, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves until cancelled; started when nodes are answered, or when it is known that another one leads.

    Before that the API server has told of everything that there is.
    """
    book = RankBook()
    ready = trio.Event()

    def started() -> None:
        if not ready.is_set():
            ready.set()
            task_status.started()

    async with trio.open_nursery() as nursery:
        if serving.config.metrics:
            await nursery.start(partial(metrics.serve, serving.config.metrics, ready=ready.is_set))
        for collection in followed(api, serving.driver, book):
            await nursery.start(collection.follow)
        # What people wish of their JobSets is known before the first restart is decided.
        await nursery.start(partial(jobsets(api, book).follow, lacking_is_known=True))
        if not serving.namespace:
            await nursery.start(_serve, api, serving, book, Fence(epochs.from_the_time()))
            started()
            return
        writer = Writer(api, serving.calls_per_second)
        election = Election(writer, serving.namespace, LEASE, serving.pod, serving.times)
        sign = Sign(writer, serving.namespace, serving.pod)
        await sign.take_down()  # of a life before this one, in the same pod

        async def act() -> None:
            async with trio.open_nursery() as acting:
                await acting.start(_serve, api, serving, book, Fence(election.term, election.holds))
                await acting.start(sign.keep_up, election.holds)
                started()
                log.info("ranks.leading", pod=serving.pod, term=election.term)

        try:
            await election.lead(act, started)
        finally:
            with trio.move_on_after(serving.times.retry, shield=True):
                await sign.take_down()


async def _serve(
    api: ApiClient,
    serving: Serving,
    book: RankBook,
    fence: Fence,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """What only the one that leads does."""
    writer = Writer(api, serving.calls_per_second, manager=COMPONENT)
    checkpoints, events = Checkpoints(api, writer), JobEvents(writer, book)
    service = RanksService(book, fence, authenticated=serving.config.tls is not None)
    config = serving.config.model_copy(update={"metrics": None})  # they are served already
    more = [(add_RanksServiceServicer_to_server, service)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkpoints.run)
        nursery.start_soon(events.run)
        observers: list[Observer] = [checkpoints, events]
        if serving.namespace:
            maps = JobAddressMaps(api, writer, serving.namespace)
            nursery.start_soon(maps.run)
            observers.append(maps)
        await nursery.start(serve_coordinator, config, more, book.domain_of, fence, observers, book.wish_of)
        task_status.started()
