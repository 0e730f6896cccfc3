"""The worker's process: ``python -m fuse_tier.replicate --config node.yaml``, started by the node's supervisor.

It prints ``{"ready": true}`` when its socket answers. SIGTERM ends it in order: the newest snapshots get the
configured time to reach the other tiers; data stays in the RAM tier.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial

import click
import structlog
import trio

from fuse_tier import logs
from fuse_tier.config import NodeConfig, load_node_config
from fuse_tier.deadlines import Deadline, check_order
from fuse_tier.errors import FuseTierError
from fuse_tier.replicate.priority import give_way
from fuse_tier.replicate.supervisor import Supervisor
from fuse_tier.replicate.worker import Worker

log = structlog.get_logger(__name__)


async def run_worker(config: NodeConfig, *, after_supervisor: bool) -> None:
    """Runs until SIGTERM or SIGINT; a second one skips what would still be copied."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        if after_supervisor and not await _supervisor_comes(config, signals):
            return
        async with trio.open_nursery() as nursery:
            worker = Worker(config, nursery)
            try:
                await nursery.start(worker.run)
                log.info("worker.ready", node=config.node)
                sys.stdout.write(json.dumps({"ready": True}) + "\n")
                sys.stdout.flush()
                await anext(signals)
                async with trio.open_nursery() as ending:
                    ending.start_soon(_cancel_on_signal, signals, ending.cancel_scope)
                    await worker.drain()
                    ending.cancel_scope.cancel()
            finally:
                with trio.move_on_after(Deadline.CONTROL_CALL) as closing:
                    closing.shield = True
                    await worker.aclose()
            nursery.cancel_scope.cancel()
    log.info("worker.ended", node=config.node)


async def _supervisor_comes(config: NodeConfig, signals: AsyncIterator[int]) -> bool:
    """False when a signal comes before."""
    has_come = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
        await Supervisor(f"{config.socket}.supervisor").until_there()
        has_come = True
        nursery.cancel_scope.cancel()
    return has_come


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


@click.command()
@click.option("--config", "config_path", required=True, type=click.Path(), help="The node's configuration file.")
@click.option(
    "--after-supervisor", is_flag=True, help="Begin when the node's supervisor, which makes the RAM tier, answers."
)
def main(config_path: str, after_supervisor: bool) -> None:
    """Runs the replication worker of one node; `fuse-tier node` starts it."""
    failure: FuseTierError | None = None
    try:
        config = load_node_config(config_path)
        logs.configure("worker", config.node)
        give_way()
        check_order()
        trio.run(partial(run_worker, config, after_supervisor=after_supervisor))
    except* FuseTierError as group:
        failure = _first(group)
    if failure is not None:  # not above: what is raised in an `except*` comes out in a group
        sys.stderr.write(f"fuse-tier: {failure}\n")
        sys.stderr.flush()
        sys.exit(failure.exit_status)


def _first(group: BaseExceptionGroup[FuseTierError]) -> FuseTierError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, FuseTierError):
        raise error
    return error


if __name__ == "__main__":
    main()
