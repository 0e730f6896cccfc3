"""Control calls: gRPC on the wire, trio on both sides of it.

What reaches the server has come in by the door (door.py). A request is taken in the loop that gRPC serves in
(looping.py), and its handler runs as a task of the nursery that ``serve`` owns: neither side takes a thread for a
call, however long that is held.

Invariants: no handler outlives ``serve``, nor its caller's interest: it is cancelled when the caller goes
away or its deadline passes. A handler's FuseTierError is raised again in the caller; any other exception is
logged here with its traceback, and the caller learns only that there was one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Self

import grpc
import grpc.aio
import trio

from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.manifest import MAX_ENCODED_BYTES
from fuse_tier.wire import impostors, looping, statuses
from fuse_tier.wire.calls import Conversation, Steps
from fuse_tier.wire.door import MOST_CONNECTIONS, Door
from fuse_tier.wire.door import Caller as Caller
from fuse_tier.wire.handlers import CLUSTER_KEY, Adapter, Bridge
from fuse_tier.wire.intake import MOST_BYTES, Intake
from fuse_tier.wire.listening import UNIX, bind_unix, listen_tcp, unbind_unix
from fuse_tier.wire.renewal import Renewing
from fuse_tier.wire.tls import SERVER_NAME, TlsFiles, grpc_client_credentials

_MAX_MESSAGE_BYTES = MAX_ENCODED_BYTES + (1 << 16)
MOST_CALLS = 256
_MAX_WAITING_STREAMS = 64
_PENDING = "grpc.server.max_pending_requests"
KEEPALIVE_SECONDS = 10.0  # without a byte from the other side of an open call: then it is asked whether it is there
SELDOM_KEEPALIVE_SECONDS = 25.0  # where something is said over streams every twenty seconds: nobody need ask
_KEEPALIVE_TIMEOUT_MILLISECONDS = 5_000

_CORES_LOGGER = "grpc._cython.cygrpc"
_RECEIVED = "grpc.max_receive_message_length"
_COMMON_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # two servers on one port would each get a part of the calls
    ("grpc.http2.min_recv_ping_interval_without_data_ms", int(1000 * KEEPALIVE_SECONDS / 2)),
)
_CLIENT_OPTIONS = (
    *_COMMON_OPTIONS,
    (_RECEIVED, _MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # whoever calls decides whether to try again
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # a client's backoff is its own
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 3000),  # despite its name: how long one attempt to connect may take
)

Register = Callable[[Any, Any], None]
Service = tuple[Register, object]


async def serve(
    services: Sequence[Service],
    address: str,
    tls: TlsFiles | None,
    *,
    cluster: str = "",
    most_connections: int = MOST_CONNECTIONS,
    most_calls: int = MOST_CALLS,
    carriers: Collection[str] = (),
    keepalive_seconds: float = KEEPALIVE_SECONDS,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; reports the bound port as started (0 for a unix socket).

    ``services`` are pairs of a generated ``add_XServicer_to_server`` and an object with ``async def
    Name(self, request, caller: Caller)`` for each call, an async generator where the answer is a stream, a plain
    function where each message of a stream is answered.
    ``address`` is HOST:PORT, or unix:/path, which is the owner's alone and has no TLS. Callers of another ``cluster``
    are refused. More than ``most_calls`` at once are turned away. ``carriers`` are the full names of calls that bring
    manifests: how long the requests of all others may be, see ``intake.py``. Raises ConfigError when it can not be
    listened on.
    """

    door = None if address.startswith(UNIX) else Door(tls, most_connections=most_connections)
    bridge = Bridge(trio.lowlevel.current_trio_token(), door.callers if door else None, cluster)

    async def make() -> grpc.aio.Server:
        # Else of those that come at once, some beyond a thousand are turned away before they are counted.
        pending = [(_PENDING, max(1000, most_calls)), (f"{_PENDING}_hard_limit", max(3000, 2 * most_calls))]
        received = (_RECEIVED, _MAX_MESSAGE_BYTES if carriers or door is None else MOST_BYTES)
        options = (*_SERVER_OPTIONS, received, _keepalive(keepalive_seconds), *pending)
        intake = [Intake(bridge, carriers)] if door else []
        return grpc.aio.server(interceptors=intake, options=options, maximum_concurrent_rpcs=most_calls)

    logging.getLogger(_CORES_LOGGER).addFilter(_is_news)
    server = await looping.do(make)
    try:
        if door is None:
            path = address.removeprefix(UNIX)
            bind_unix(server, path)
            try:
                await _handle(services, server, bridge, 0, task_status)
            finally:
                unbind_unix(path)
            return
        with await listen_tcp(address) as listener:
            server.add_insecure_port(door.inner)
            port = listener.getsockname()[1]
            async with trio.open_nursery() as nursery:
                # Open until gRPC has told everybody that it ends.
                open_door = trio.CancelScope(shield=True)

                async def keep_open() -> None:
                    with open_door:
                        await door.serve(listener)

                nursery.start_soon(keep_open)
                try:
                    await _handle(services, server, bridge, port, task_status)
                finally:
                    open_door.cancel()
    finally:
        await looping.do(partial(server.stop, None))  # also one that was never started


def _is_news(record: logging.LogRecord) -> bool:
    """That a server which ends has ended its calls is what it is for: their callers are told, each by its own end."""
    return "due to server stop" not in record.getMessage()


async def _handle(
    services: Sequence[Service],
    server: grpc.aio.Server,
    bridge: Bridge,
    port: int,
    task_status: trio.TaskStatus[int],
) -> None:
    for register, servicer in services:
        register(Adapter(servicer, bridge), server)
    try:
        async with trio.open_nursery() as nursery:
            bridge.nursery = nursery
            await looping.do(server.start)
            try:
                task_status.started(port)
                await trio.sleep_forever()
            finally:
                bridge.nursery = None
    finally:
        # All handlers have ended; what still arrives is turned away by the bridge, which needs this loop to run.
        await looping.do(partial(server.stop, None))


class Client:
    """Calls one server. Connects when needed and again after a failure, never waiting for a server to come.

    ``stub`` is a generated stub class. Calls raise what their handler raised, or TierUnavailable when there is
    no connection, or DeadlineExceeded. ``cluster`` is told with each call. With certificates only ``node`` is called,
    and NotThatNode raised where another one answers; None where any with a certificate of the cluster will do.
    """

    def __init__(
        self,
        address: str,
        stub: Callable[[grpc.Channel], Any],
        tls: TlsFiles | None,
        node: str | None = None,
        *,
        cluster: str = "",
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        self._address = address.removeprefix(UNIX)
        self._target = address
        self._make_stub = stub
        self._metadata = ((CLUSTER_KEY, cluster),) if cluster else ()
        self._options = (*_CLIENT_OPTIONS, _keepalive(keepalive_seconds))
        self._node = node
        self._name = ("grpc.ssl_target_name_override", node or SERVER_NAME)
        is_plain = tls is None or address.startswith(UNIX)
        self._credentials = None if is_plain or tls is None else Renewing(tls, grpc_client_credentials)
        self._shown = self._credentials.current() if self._credentials is not None else None
        self._channel, self._stub = self._connect()
        self._replaced: list[grpc.Channel] = []
        self._steps = trio.CapacityLimiter(_MAX_WAITING_STREAMS)
        self._is_closed = False

    def _connect(self) -> tuple[grpc.Channel, Any]:
        if self._shown is None:
            channel = grpc.insecure_channel(self._target, options=self._options)
        else:
            channel = grpc.secure_channel(self._target, self._shown, options=(*self._options, self._name))
        return channel, self._make_stub(channel)

    def _renew(self) -> None:
        """A connection with the certificates of now, if others were shown before."""
        if self._credentials is None or self._is_closed:
            return
        current = self._credentials.current()
        if current is not self._shown:
            self._shown = current
            for channel in self._replaced:
                channel.close()
            self._replaced = [self._channel]  # its calls may end: until the next renewal
            self._channel, self._stub = self._connect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def call(self, name: str, request: Any, deadline_seconds: float, settle_seconds: float = 0.0) -> Any:
        """One request, one answer. Cancelling it cancels the handler.

        A call that changes something may be given ``settle_seconds``: cancelled, it waits so long for its answer, so
        that its change has come about or will not, rather than at any time later.
        """
        token = trio.lowlevel.current_trio_token()
        answered = trio.Event()

        def tell(_: object) -> None:  # in a thread of gRPC
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(answered.set)

        call = self._start(name, "future", request, deadline_seconds)
        del request  # an error is kept with this frame until cycles are looked for
        call.add_done_callback(tell)
        try:
            await answered.wait()
        except trio.Cancelled:
            with trio.move_on_after(settle_seconds, shield=True):
                await answered.wait()
            call.cancel()
            raise
        try:
            return call.result()
        except grpc.FutureCancelledError as error:
            raise self._closed() from error
        except grpc.RpcError as error:
            raise self._explain(error, name, deadline_seconds) from error

    def stream(self, name: str, request: Any, deadline_seconds: float | None) -> AsyncIterator[Any]:
        """One request, many answers. Leaving the loop early, or cancelling it, cancels the handler.

        ``deadline_seconds`` is for the whole of it; None where the handler keeps its own.
        """
        return Steps(
            self._start(name, "__call__", request, deadline_seconds),
            partial(self._explain, name=name, deadline_seconds=deadline_seconds),
            self._steps,
        )

    def converse(self, name: str) -> Conversation:
        """Begins a call of which each message is answered. It is over once it is closed, or cannot be answered."""
        messages: SimpleQueue[Any] = SimpleQueue()
        call = self._start(name, "__call__", iter(messages.get, None), None)
        channel = self._channel

        def is_current() -> bool:
            self._renew()
            return self._channel is channel

        return Conversation(
            f"{name} at {self._address}", messages, call, is_current, partial(self._explain, name=name)
        )

    async def aclose(self) -> None:
        """Ends calls that are under way, with TierUnavailable."""
        self._is_closed = True
        for channel in (*self._replaced, self._channel):
            channel.close()
        await trio.lowlevel.checkpoint()

    def _start(self, name: str, kind: str, request: Any, deadline_seconds: float | None) -> Any:
        self._renew()
        try:
            return getattr(getattr(self._stub, name), kind)(
                request, timeout=deadline_seconds, metadata=self._metadata
            )
        except ValueError as error:  # a closed channel
            raise self._closed() from error

    def _explain(self, error: grpc.RpcError, name: str, deadline_seconds: float | None) -> FuseTierError:
        if self._is_closed:
            return self._closed()
        if self._node is not None and statuses.is_of_another_name(error):
            return impostors.note(self._node, self._address)
        return statuses.rebuild(error, name, self._address, deadline_seconds)

    def _closed(self) -> TierUnavailable:
        return TierUnavailable(f"the connection to {self._address} was closed here")


def _keepalive(seconds: float) -> tuple[str, int]:
    return "grpc.keepalive_time_ms", int(1000 * seconds)
