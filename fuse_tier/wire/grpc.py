"""Control calls: gRPC on the wire, trio on both sides of it.

The server takes each request in a thread of gRPC's pool and runs its handler as a task of the nursery that
``serve`` owns; the thread only waits for it. The client starts a call and waits for its end without a thread.

Invariants: no handler outlives ``serve``, nor its caller's interest: it is cancelled when the caller goes
away or its deadline passes. A handler's FuseTierError is raised again in the caller; any other exception is
logged here with its traceback, and the caller learns only that there was one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Self

import grpc
import trio

from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.manifest import MAX_ENCODED_BYTES
from fuse_tier.threads import run_interruptible
from fuse_tier.wire import statuses
from fuse_tier.wire.handlers import Adapter, Bridge
from fuse_tier.wire.handlers import Caller as Caller
from fuse_tier.wire.listening import UNIX, bind, unbind
from fuse_tier.wire.tls import SERVER_NAME, TlsFiles, grpc_client_credentials

_MAX_MESSAGE_BYTES = MAX_ENCODED_BYTES + (1 << 16)
_HANDLER_THREADS = 64
_MAX_CONCURRENT_CALLS = 256
_MAX_WAITING_STREAMS = 64
_KEEPALIVE_MILLISECONDS = 10_000
_KEEPALIVE_TIMEOUT_MILLISECONDS = 5_000

_COMMON_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # two servers on one port would each get a part of the calls
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MILLISECONDS // 2),
)
_CLIENT_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # whoever calls decides whether to try again
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # a client's backoff is its own
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 3000),  # despite its name: how long one attempt to connect may take
)

Register = Callable[[Any, grpc.Server], None]
Service = tuple[Register, object]


async def serve(
    services: Sequence[Service],
    address: str,
    tls: TlsFiles | None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; reports the bound port as started (0 for a unix socket).

    ``services`` are pairs of a generated ``add_XServicer_to_server`` and an object with ``async def
    Name(self, request, caller: Caller)`` for each call, an async generator where the answer is a stream.
    ``address`` is HOST:PORT, or unix:/path, which is the owner's alone and has no TLS. Raises ConfigError when
    it can not be listened on.
    """
    pool = ThreadPoolExecutor(_HANDLER_THREADS, thread_name_prefix="grpc-handler")
    server = grpc.server(pool, options=_SERVER_OPTIONS, maximum_concurrent_rpcs=_MAX_CONCURRENT_CALLS)
    bridge = Bridge(trio.lowlevel.current_trio_token())
    for register, servicer in services:
        register(Adapter(servicer, bridge), server)
    bound = False
    try:
        port = bind(server, address, tls)
        bound = True
        async with trio.open_nursery() as nursery:
            bridge.nursery = nursery
            server.start()
            try:
                task_status.started(port)
                await trio.sleep_forever()
            finally:
                bridge.nursery = None
    finally:
        # All handlers have ended; what still arrives is turned away by the bridge, which needs this loop to run.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(_stop, server, pool))
        if bound:
            unbind(address)


def _stop(server: grpc.Server, pool: ThreadPoolExecutor) -> None:
    server.stop(grace=None).wait()
    pool.shutdown()


class Client:
    """Calls one server. Connects when needed and again after a failure, never waiting for a server to come.

    ``stub`` is a generated stub class. Calls raise what their handler raised, or TierUnavailable when there is
    no connection, or DeadlineExceeded.
    """

    def __init__(
        self, address: str, stub: Callable[[grpc.Channel], Any], tls: TlsFiles | None, server_name: str | None = None
    ) -> None:
        self._address = address.removeprefix(UNIX)
        if tls is None or address.startswith(UNIX):
            self._channel = grpc.insecure_channel(address, options=_CLIENT_OPTIONS)
        else:
            named = (*_CLIENT_OPTIONS, ("grpc.ssl_target_name_override", server_name or SERVER_NAME))
            self._channel = grpc.secure_channel(address, grpc_client_credentials(tls), options=named)
        self._stub = stub(self._channel)
        self._steps = trio.CapacityLimiter(_MAX_WAITING_STREAMS)
        self._is_closed = False

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
        return _Steps(
            self._start(name, "__call__", request, deadline_seconds),
            lambda error: self._explain(error, name, deadline_seconds),
            self._steps,
        )

    async def aclose(self) -> None:
        """Ends calls that are under way, with TierUnavailable."""
        self._is_closed = True
        self._channel.close()
        await trio.lowlevel.checkpoint()

    def _start(self, name: str, kind: str, request: Any, deadline_seconds: float | None) -> Any:
        try:
            return getattr(getattr(self._stub, name), kind)(request, timeout=deadline_seconds)
        except ValueError as error:  # a closed channel
            raise self._closed() from error

    def _explain(self, error: grpc.RpcError, name: str, deadline_seconds: float | None) -> FuseTierError:
        if self._is_closed:
            return self._closed()
        return statuses.rebuild(error, name, self._address, deadline_seconds)

    def _closed(self) -> TierUnavailable:
        return TierUnavailable(f"the connection to {self._address} was closed here")


class _Steps:
    """The answers of a stream. gRPC itself cancels a call of which nobody keeps the iterator."""

    def __init__(
        self, answers: Any, rebuild: Callable[[grpc.RpcError], FuseTierError], limiter: trio.CapacityLimiter
    ) -> None:
        self._answers = answers
        self._rebuild = rebuild
        self._limiter = limiter

    def __aiter__(self) -> _Steps:
        return self

    async def __anext__(self) -> Any:
        try:
            step = await run_interruptible(partial(next, self._answers, None), self._answers.cancel, self._limiter)
        except grpc.RpcError as error:
            raise self._rebuild(error) from error
        if step is None:
            raise StopAsyncIteration
        return step
