"""What ``fuse-tier node`` runs: one node, from its claim on a RAM tier until its orderly end.

It starts things and ends things: the worker, one keeper per mounted volume, and the socket over which they are
asked for. File content and snapshots are none of its business, and it may die without harm to them: the mounts go on,
and the next supervisor of the node adopts them.

The order of the end is the point: mounts first, so that the last writes are closed; then the worker, which copies
what they left. Data stays in the RAM tier. SIGUSR1 kills the worker alone, and leaves the mounts to the next
supervisor: that is how a node is upgraded while its jobs write.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
import trio

from fuse_tier.config import NodeConfig
from fuse_tier.errors import ConfigError, FuseTierError, InvalidRequest
from fuse_tier.identity import Identity
from fuse_tier.node.claims import ram_tier_claimed, refuse_taken_ram_tier, refuse_taken_socket
from fuse_tier.node.priority import KEEPING, protect
from fuse_tier.node.processes import check_starter
from fuse_tier.node.refuges import keep_refuge
from fuse_tier.node.settings import DaemonSettings
from fuse_tier.node.volumes import Volumes
from fuse_tier.node.worker import Worker
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import prepare_ram, take_back
from fuse_tier.wire.channel import Arguments, Channel, Handler, serve

log = structlog.get_logger(__name__)

_PYTHON: Final = (sys.executable, "-P", "-m")  # -P: modules in the directory where a node is started are not ours


@dataclass(frozen=True, slots=True)
class Programs:
    """The commands of the processes that a node is made of."""

    worker: tuple[str, ...] = (*_PYTHON, "fuse_tier.replicate")
    daemon: tuple[str, ...] = (*_PYTHON, "fuse_tier.fs")


async def run_node(config: NodeConfig, config_path: str, programs: Programs = Programs()) -> None:
    """Runs a node until SIGTERM, SIGINT or SIGHUP, in the main thread; until SIGUSR1, which leaves its mounts.

    A second signal skips what the worker would still copy.
    Raises ConfigError when the RAM tier or the socket can't be had, and FuseTierError or ConfigError, by its exit
    status, when the worker refuses to start; it has then said why.
    """
    with trio.open_signal_receiver(*_signals_to_obey()) as signals:
        check_starter()
        refuse_taken_socket(config.socket)
        refuse_taken_socket(_volumes_socket(config))
        async with _claimed(config):
            worker = Worker([*programs.worker, "--config", config_path])
            await _Node(config, programs, worker).run(signals)


async def run_supervisor(config: NodeConfig, programs: Programs = Programs()) -> None:
    """Runs a node's supervisor alone, until it is cancelled; the worker is another's to run, and mounts go on.

    In the main thread. Raises ConfigError, Taken among them, when the RAM tier or the socket can't be had.
    """
    async with _claimed(config):
        await _Node(config, programs, None).supervise()


@asynccontextmanager
async def _claimed(config: NodeConfig) -> AsyncIterator[None]:
    # Before anything is changed: the RAM tier may be another node's, of another size.
    refuse_taken_ram_tier(Layout(config.ram.path))
    refuse_taken_socket(_supervisor_socket(config))
    prepare = partial(prepare_ram, config.ram.path, config.ram.size, config.node, config.cluster)
    setup = await trio.to_thread.run_sync(prepare)
    try:
        with ram_tier_claimed(setup.layout):
            protect(KEEPING)
            _make_place(config.socket)
            yield
    except FuseTierError:
        await trio.to_thread.run_sync(take_back, setup)
        raise


def _signals_to_obey() -> tuple[signal.Signals, ...]:
    # A terminal that goes away ends the node in order too, unless nohup said otherwise.
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, *hangup)


def _make_place(path: str) -> None:
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"socket: {directory} cannot be created: {error.strerror}: choose another path") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"socket: {directory} may not be written by user {os.geteuid()}: choose another path")


def _supervisor_socket(config: NodeConfig) -> str:
    return f"{config.socket}.supervisor"


def _volumes_socket(config: NodeConfig) -> str:
    return f"{config.socket}.volumes"


_MANY: Final = (*_PYTHON, "fuse_tier.fs.many")


class _Node:
    """``worker`` is None where that is run by somebody else, in a container of its own."""

    def __init__(self, config: NodeConfig, programs: Programs, worker: Worker | None) -> None:
        self._config = config
        self._worker = worker
        self._daemons = DaemonSettings(
            programs.daemon,
            config.ram.path,
            _volumes_socket(config),
            config.fsync,
            config.passthrough,
            tuple(config.ram.expected_sizes.items()),
            share=config.ram.share or 0,
            many=_MANY if programs.daemon == Programs().daemon else None,
            vaulted=worker is None,
        )
        self._told_to_end = trio.Event()
        self._leaves_mounts = False
        self._hurry = trio.Event()

    async def supervise(self) -> None:
        """Until it is cancelled."""
        async with trio.open_nursery() as nursery:
            volumes = Volumes(self._daemons, nursery)
            await volumes.adopt()
            nursery.start_soon(keep_refuge, self._config.socket)
            await nursery.start(self._serve_calls, volumes)
            self._say_ready(f"supervisor of node {self._config.node} is ready: socket {self._config.socket}")
            await trio.sleep_forever()

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Until a signal, with its worker."""
        worker = self._worker
        if worker is None:
            raise ValueError("a node without its worker is only supervised")
        async with trio.open_nursery() as nursery:
            volumes = Volumes(self._daemons, nursery)
            # Before anybody asks what is mounted: first of all the worker, which keeps what is.
            await volumes.adopt()
            calls = await nursery.start(self._serve_calls, volumes)
            nursery.start_soon(self._obey, signals)
            nursery.start_soon(self._announce, worker)
            nursery.start_soon(self._end_when_refused, worker)
            nursery.start_soon(worker.run)
            await self._told_to_end.wait()
            await self._end(volumes, calls, worker)
            nursery.cancel_scope.cancel()
        if worker.refused.is_set():
            raise refusal_of(worker.status)

    async def _end(self, volumes: Volumes, calls: trio.CancelScope, worker: Worker) -> None:
        # First of all no more calls: a mount that is being made is taken back.
        calls.cancel()
        if self._leaves_mounts:
            await worker.kill()
        else:
            await volumes.end_all(self._hurry)
            await worker.end(self._config.drain, self._hurry)
        log.info("node.ended", node=self._config.node)

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self._told_to_end.is_set():
                log.info("node.hurried", node=self._config.node, signal=name)
                self._hurry.set()
            else:
                self._leaves_mounts = number == signal.SIGUSR1
                log.info("node.ending", node=self._config.node, signal=name, leaves_mounts=self._leaves_mounts)
                self._told_to_end.set()

    async def _end_when_refused(self, worker: Worker) -> None:
        await worker.refused.wait()
        self._leaves_mounts = True  # of a node before this one: there are no others yet
        self._told_to_end.set()

    async def _announce(self, worker: Worker) -> None:
        await worker.ready.wait()
        config = self._config
        self._say_ready(
            f"node {config.node} is ready: socket {config.socket}, control {config.listen.control}, "
            f"metrics {config.metrics or 'off'}"
        )

    def _say_ready(self, line: str) -> None:
        config, lines = self._config, [line]
        if os.geteuid() != 0:
            lines.insert(0, "running without root: mounts by fusermount3, RAM tier under /dev/shm, no passthrough")
        log.info("node.ready", node=config.node, pid=os.getpid())
        try:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
        except OSError as error:
            # Who started us no longer listens; that is no reason to end.
            log.warning("node.unheard", node=config.node, reason=str(error))

    async def _serve_calls(self, volumes: Volumes, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        path = _supervisor_socket(self._config)
        handlers = _handlers(volumes)

        async def accept(stream: trio.SocketStream) -> None:
            await Channel(stream, handlers).run()

        with trio.CancelScope() as scope:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(partial(serve, path, accept))
                    task_status.started(scope)
            finally:
                os.unlink(path)


def refusal_of(status: int) -> FuseTierError:
    """What a worker ended with that refused to start."""
    kind = ConfigError if status == ConfigError.exit_status else FuseTierError
    return kind("the node could not start: its replication worker ended; the message above says why")


def _handlers(volumes: Volumes) -> dict[str, Handler]:
    async def check(arguments: Arguments) -> dict[str, Any]:
        identity = Identity.parse(_text(arguments, "identity"))
        return {"mountpoint": await volumes.check(identity, _text(arguments, "mountpoint"))}

    async def mount(arguments: Arguments) -> dict[str, Any]:
        identity = Identity.parse(_text(arguments, "identity"))
        await volumes.mount(identity, _text(arguments, "mountpoint"), read_only=bool(arguments.get("read_only")))
        return {}

    async def unmount(arguments: Arguments) -> dict[str, Any]:
        return {"identity": str(await volumes.unmount(_text(arguments, "mountpoint")))}

    async def detach(arguments: Arguments) -> dict[str, Any]:
        return {"ended": await volumes.detach(_text(arguments, "mountpoint"))}

    async def mounts(_: Arguments) -> list[dict[str, Any]]:
        return volumes.listing()

    return {"check": check, "mount": mount, "unmount": unmount, "detach": detach, "mounts": mounts}


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is missing or no text")
    return value
