"""From the threads in which gRPC brings requests into trio, where they are handled, and back.

A thread only waits for its request's task. Invariant: no handler outlives the nursery, nor its caller's
interest: it is cancelled when the caller goes away or its deadline passes.
"""

from __future__ import annotations

import inspect
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import structlog
import trio

from fuse_tier.errors import FuseTierError, InvalidRequest, TierRefused
from fuse_tier.wire import statuses
from fuse_tier.wire.door import Caller
from fuse_tier.wire.rejections import Rejections

log = structlog.get_logger(__name__)

CLUSTER_KEY = "fuse-tier-cluster"  # of a call's metadata: the cluster that the caller belongs to


class Adapter:
    """What the generated code takes for a servicer."""

    def __init__(self, servicer: object, bridge: Bridge) -> None:
        self._servicer = servicer
        self._bridge = bridge

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._servicer, name, None)
        if method is None:
            return partial(_unimplemented, name)
        if inspect.isasyncgenfunction(method):
            return partial(self._bridge.stream, method)
        return partial(self._bridge.unary, method)


def _unimplemented(name: str, request: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not served here")


class Bridge:
    """From the pool's threads into the nursery and back. ``nursery`` is None while nothing is served.

    ``callers`` are known by their connection's name; None where every caller is a process of this machine. With a
    ``cluster``, who says that it is of another one is refused; versions before say nothing, but at hello.
    """

    def __init__(
        self, token: trio.lowlevel.TrioToken, callers: Mapping[str, Caller] | None, cluster: str = ""
    ) -> None:
        self._token = token
        self._callers = callers
        self._cluster = cluster
        self._refused = Rejections("control.request_refused")
        self._of_others = Rejections("peer.refused")
        self.nursery: trio.Nursery | None = None

    def unary(self, method: Callable[..., Any], request: object, context: grpc.ServicerContext) -> Any:
        """Runs in a thread of the pool."""
        caller = self._caller(context)
        if method.__name__ != "Hello":  # which tells more
            self._check_cluster(caller, context)

        async def work() -> Any:
            return await method(request, caller)

        return self._wait(self._start(method.__name__, work, context), method.__name__, context)

    def stream(self, method: Callable[..., Any], request: object, context: grpc.ServicerContext) -> Iterator[Any]:
        """Runs in a thread of the pool."""
        caller = self._caller(context)
        send, receive = trio.open_memory_channel[Any](1)

        async def work() -> None:
            async with send:
                generator = method(request, caller)
                try:
                    async for item in generator:
                        await send.send(item)
                finally:
                    with trio.CancelScope(shield=True):
                        await generator.aclose()

        ended = self._start(method.__name__, work, context)
        ended.add_done_callback(lambda _: self._soon(send.close))  # also when it was never begun
        with suppress(trio.EndOfChannel, trio.RunFinishedError):
            while True:
                yield trio.from_thread.run(receive.receive, trio_token=self._token)
        self._wait(ended, method.__name__, context)

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        if self._callers is None:
            return Caller(None, "a local process")
        caller = self._callers.get(urllib.parse.unquote(context.peer()))
        if caller is None:  # it found the inner socket, or its connection has ended
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "calls come in by the control port only")
        return caller

    def _check_cluster(self, caller: Caller, context: grpc.ServicerContext) -> None:
        said = dict(context.invocation_metadata()).get(CLUSTER_KEY, self._cluster)
        if self._cluster and said != self._cluster:
            error = TierRefused(
                f"this node belongs to cluster {self._cluster!r}, and the caller to {said!r}: correct the cluster or "
                "the addresses in node.yaml"
            )
            self._of_others.note("cluster", caller.address, str(error))
            self._abort(error, context)

    def _start(self, name: str, work: Callable[[], Any], context: grpc.ServicerContext) -> Future[Any]:
        outcome: Future[Any] = Future()
        scope = trio.CancelScope()

        async def attempt() -> None:
            try:
                with scope:
                    outcome.set_result(await work())
            except Exception as error:  # noqa: BLE001 - raised or logged in _wait
                outcome.set_exception(_sole_cause(error))
            finally:
                if not outcome.done():
                    outcome.cancel()

        def begin() -> None:
            if self.nursery is None:
                outcome.cancel()
            else:
                self.nursery.start_soon(attempt, name=f"grpc {name}")

        if context.add_callback(lambda: self._soon(scope.cancel)):
            self._soon(begin)
        else:  # the caller has gone already
            outcome.cancel()
        return outcome

    def _soon(self, action: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(action)

    def _wait(self, outcome: Future[Any], name: str, context: grpc.ServicerContext) -> Any:
        try:
            return outcome.result()
        except CancelledError:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the process is shutting down, or the caller has gone")
        except FuseTierError as error:
            if isinstance(error, InvalidRequest) and self._callers is not None:
                self._refused.note("request", self._caller(context).address, f"{name}: {error}")
            self._abort(error, context)
        except Exception:
            log.exception("grpc.handler_failed", call=name)
            context.abort(grpc.StatusCode.INTERNAL, "an unexpected error")

    def _abort(self, error: FuseTierError, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata(statuses.metadata_of(error))
        context.abort(statuses.code_of(error), statuses.details_of(error))


def _sole_cause(error: Exception) -> Exception:
    """What went wrong, without the groups that nurseries put around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
