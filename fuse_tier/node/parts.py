"""A node in parts, each a process of its own, in containers that start and end apart: the supervisor, and the worker.

They find each other over the node's sockets, in any order. Neither ends the other's work: a supervisor that ends
leaves its mounts, and a worker leaves what it has copied. Each waits for its turn (turns.py) and, when another pod
has taken over, gives up all that is the node's and waits to be ended: its container must not be started again for
that.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from fuse_tier.config import NodeConfig
from fuse_tier.deadlines import Deadline
from fuse_tier.fs.syscalls import raise_descriptor_limit
from fuse_tier.node.claims import Taken
from fuse_tier.node.keepers import place_of
from fuse_tier.node.priority import KEEPING, protect
from fuse_tier.node.processes import check_starter
from fuse_tier.node.supervisor import Programs, refusal_of, run_supervisor
from fuse_tier.node.turns import Turn
from fuse_tier.node.vault import Vault
from fuse_tier.node.worker import Worker

log = structlog.get_logger(__name__)

_AGAIN_SECONDS: Final = 0.1
_PROGRAMS: Final = Programs()
_SUPERSEDED: Final = "another pod of the driver has this node now"


async def run_supervisor_part(config: NodeConfig, programs: Programs = _PROGRAMS) -> None:
    """Runs the supervisor of a node until SIGTERM or SIGINT, in the main thread. Mounts go on.

    Raises ConfigError when the RAM tier or a socket cannot be had.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        check_starter()

        async def work() -> None:
            await insist(lambda: run_supervisor(config, programs), "supervisor.waits")

        await in_turn(Turn(config.socket), signals, work)


async def run_worker_part(config: NodeConfig, config_path: str, programs: Programs = _PROGRAMS) -> None:
    """Runs the worker of a node until SIGTERM or SIGINT; then it has the configured time to copy what is not safe.

    Raises FuseTierError or ConfigError when the worker refuses to start; it has then said why.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        check_starter()
        raise_descriptor_limit()
        protect(KEEPING)
        # It waits for the supervisor itself: until that is there, it has read all of its code.
        worker = Worker([*programs.worker, "--config", config_path, "--after-supervisor"])

        async def work() -> None:
            async with trio.open_nursery() as nursery:
                # No work of a worker's: should the others that have copies die with the keepers, this one is left.
                nursery.start_soon(Vault(place_of(config.socket)).run)
                await insist(lambda: _run_worker(config, worker), "worker.waits")
                nursery.cancel_scope.cancel()

        async def end() -> None:
            hurry = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hurry_when_told, signals, hurry)
                await worker.end(config.drain, hurry)
                nursery.cancel_scope.cancel()

        await in_turn(Turn(config.socket), signals, work, end)


async def _run_worker(config: NodeConfig, worker: Worker) -> None:
    with _alone(f"{config.socket}.worker"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_announce, config, worker)
            await worker.run()
            nursery.cancel_scope.cancel()
    if worker.refused.is_set():
        raise refusal_of(worker.status)


async def _announce(config: NodeConfig, worker: Worker) -> None:
    await worker.ready.wait()
    sys.stdout.write(f"worker of node {config.node} is ready\n")
    sys.stdout.flush()


async def _hurry_when_told(signals: AsyncIterator[int], hurry: trio.Event) -> None:
    async for _ in signals:
        hurry.set()


async def in_turn(
    turn: Turn,
    signals: AsyncIterator[int],
    work: Callable[[], Awaitable[None]],
    end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Does ``work`` while it is this pod's turn; ``end`` comes before its cancellation when a signal ends us."""
    async with trio.open_nursery() as nursery:

        async def obey() -> None:
            async for _ in signals:
                break
            if end is not None:
                await end()
            nursery.cancel_scope.cancel()

        async def serve() -> None:
            with trio.CancelScope() as mine:
                if not turn.take():
                    log.info("part.superseded", reason=_SUPERSEDED)
                    await trio.sleep_forever()
                async with trio.open_nursery() as inner:

                    async def yield_to_others() -> None:
                        await turn.until_superseded()
                        log.info("part.superseded", reason=_SUPERSEDED)
                        mine.cancel()

                    inner.start_soon(yield_to_others)
                    await work()
                    nursery.cancel_scope.cancel()

        nursery.start_soon(obey)
        nursery.start_soon(serve)


async def insist(work: Callable[[], Awaitable[None]], event: str) -> None:
    """Begins again while another has what this needs: it ends, or has not found out yet that it is to end."""
    give_up = trio.current_time() + Deadline.NODE_STOP
    told = False
    while True:
        try:
            return await work()
        except Taken as taken:
            if trio.current_time() > give_up:
                raise
            if not told:
                log.info(event, reason=str(taken))
                told = True
            await trio.sleep(_AGAIN_SECONDS)


@contextmanager
def _alone(path: str) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Taken(f"{path} is held by another worker of this node, which has not ended yet") from None
    finally:
        os.close(lock)
