"""The controller as a process: what it ready, whether it leads, and how it says that it is well."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio
from kubernetes.client import ApiClient

from controller.driver import names
from controller.election import Election, Times
from controller.reconciling import counts
from controller.reconciling.asking import EVERY_SECONDS, Asker
from controller.reconciling.conditions import Event
from controller.reconciling.issuing import Issuer
from controller.reconciling.queue import Queue
from controller.reconciling.reconciler import Reconciler, Task
from controller.reconciling.telling import Teller
from controller.reconciling.uptime import GRACE_SECONDS, DriverPod, Uptime
from controller.reconciling.world import World
from controller.watching import Collection
from controller.writing import Writer
from fuse_tier import metrics
from fuse_tier.config import Address

log = structlog.get_logger(__name__)

LEASE = "high-scale-checkpointing-controller"


@dataclass(frozen=True, slots=True)
class Serving:
    """How a controller is run."""

    task: Task
    calls_per_second: float
    lease_namespace: str = ""  # empty: it is the only one, and asks for no lease
    times: Times = field(default_factory=Times)
    health: Address | None = None
    metrics: Address | None = None
    uptime_backoff: float | None = None
    """Seconds between two driver pods that are deleted since they are not ready; None: none is."""
    uptime_grace: float = GRACE_SECONDS
    coordinator: str = ""
    """HOST:PORT of the ranks server; empty: how nodes are used is not told."""
    asks_every_seconds: float = EVERY_SECONDS


async def run_controller(api: ApiClient, serving: Serving) -> None:
    """Until SIGTERM or SIGINT. Raises a group with a ConfigError when it cannot listen, or with LeadershipLost."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_controller, api, serving)
            async for received in signals:
                log.info("controller.stopping", signal=signal.Signals(received).name)
                break
            nursery.cancel_scope.cancel()


async def serve_controller(
    api: ApiClient, serving: Serving, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Until cancelled; started when it listens. Ready is who acts and has seen all, and who waits for the lease."""
    queue = Queue()
    world = World(lambda uid: queue.add(world.configurations if uid is None else [uid]))
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        for address in dict.fromkeys(one for one in (serving.health, serving.metrics) if one is not None):
            await nursery.start(partial(metrics.serve, address, ready=ready.is_set))
        task_status.started()
        writer = Writer(api, serving.calls_per_second, counts.api_answered)
        issuer = Issuer(writer, world, serving.task.settings)
        asker = Asker(serving.coordinator, world, queue, issuer, serving.asks_every_seconds)
        reconciler = Reconciler(writer, world, queue, serving.task, issuer, asker.usage)

        async def act() -> None:
            # Only the one that acts looks at everything: a replica that waits costs the API server next to nothing.
            counts.leads(True)
            async with trio.open_nursery() as following:
                following.start_soon(reconciler.run)
                for collection in world.collections(api, serving.task.settings.namespace):
                    await following.start(collection.follow)
                world.complete()
                following.start_soon(reconciler.look_again)
                following.start_soon(_look_for_jobsets, api, world)
                if serving.uptime_backoff is not None:
                    following.start_soon(_keep_up, api, writer, world, serving, serving.uptime_backoff)
                if serving.coordinator:
                    following.start_soon(asker.run)
                ready.set()
                log.info("controller.ready", identity=serving.task.identity)

        if not serving.lease_namespace:
            await act()
        else:
            election = Election(writer, serving.lease_namespace, LEASE, serving.task.identity, serving.times)
            await election.lead(act, ready.set)


async def _look_for_jobsets(api: ApiClient, world: World) -> None:
    """Until cancelled."""
    async with trio.open_nursery() as nursery:
        await nursery.start(world.jobsets(api).follow)
        world.see_jobsets(world.has_jobsets is True)  # where there is nothing, nothing is seen


async def _keep_up(api: ApiClient, writer: Writer, world: World, serving: Serving, backoff: float) -> None:
    """Follows driver pods, and deletes those that stay unready."""
    teller = Teller(writer, world, serving.task.identity)

    async def tell(pod: DriverPod) -> None:
        configuration = world.configurations.get(pod.configuration)
        if configuration is not None:
            minutes = serving.uptime_grace / 60
            said = f"pod {pod.name} on node {pod.node} was not ready for {minutes:g} minutes: it is made anew"
            await teller.send(configuration, Event(True, "DriverPodDeleted", said))

    uptime = Uptime(
        writer,
        serving.task.settings.namespace,
        world.answering_nodes,
        tell,
        backoff=backoff,
        grace=serving.uptime_grace,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(Collection(api, uptime.path, uptime, names.SELECTED).follow)
        await uptime.run()
