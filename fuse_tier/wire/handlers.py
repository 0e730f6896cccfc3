"""From the loop in which gRPC brings requests into trio, where they are handled, and back.

In the loop a request only waits for its task. The messages of a stream of which each is answered have none: a plain
function gives the answer at once, in trio. Invariant: no handler outlives the nursery, nor its caller's
interest: it is cancelled when the caller goes away or its deadline passes.
"""

from __future__ import annotations

import asyncio
import inspect
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, InvalidRequest, TierRefused, TierUnavailable
from fuse_tier.wire import statuses
from fuse_tier.wire.door import Caller
from fuse_tier.wire.passages import END, Answers, Ended, Task, give_up
from fuse_tier.wire.rejections import Rejections

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_FEW = 100  # streams of which each message is answered; of more
_CONVERSATIONS = 32  # of one node: some may be of connections that broke, and have not ended here
_MOMENT_SECONDS = 0.02  # messages that come within it are answered together

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
        if inspect.iscoroutinefunction(method):
            return partial(self._bridge.unary, method)
        return partial(self._bridge.converse, method)


async def _unimplemented(name: str, request: object, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not served here")


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
        self._conversations = 0
        self._talking: Counter[str | None] = Counter()  # these, by the node
        self._answers: Answers | None = None  # to messages of this moment
        self.nursery: trio.Nursery | None = None

    async def unary(self, method: Callable[..., Any], request: object, context: Context) -> Any:
        """Runs in the loop."""
        caller = await self.caller(context)
        if method.__name__ != "Hello":  # which tells more
            await self._check_cluster(caller, context)
        task = Task(self._token)
        self._start(task, method.__name__, partial(method, request, caller))
        del request  # gRPC keeps the frames of a call that was aborted until cycles are looked for
        try:
            return await self._wait(task.outcome, method.__name__, context)
        finally:
            task.cancel()

    async def stream(self, method: Callable[..., Any], request: object, context: Context) -> AsyncIterator[Any]:
        """Runs in the loop."""
        caller = await self.caller(context)
        task = Task(self._token)

        async def work() -> None:
            generator = method(request, caller)
            try:
                async for item in generator:
                    await task.room.acquire()
                    task.tell(partial(task.answers.put_nowait, item))
            finally:
                with trio.CancelScope(shield=True):
                    await generator.aclose()

        self._start(task, method.__name__, work)
        try:
            while (item := await task.answers.get()) is not END:
                yield item
                task.soon(task.room.release)
            await self._wait(task.outcome, method.__name__, context)
        finally:
            task.cancel()

    async def converse(self, method: Callable[..., Any], _: object, context: Context) -> None:
        """Runs in the loop. Takes a message when the one before is answered, and the answer is on its way."""
        caller = await self.caller(context)
        await self._check_cluster(caller, context)
        if caller.node is not None and self._talking[caller.node] >= _CONVERSATIONS:
            error = TierUnavailable(f"node {caller.node} has {_CONVERSATIONS} streams open already")
            self._refused.note("too_many", caller.address, str(error))
            await self._abort(error, context)
        self._conversations += 1
        self._talking[caller.node] += 1
        try:
            while (request := await self._heard(context)) is not grpc.aio.EOF:
                outcome = self._ask_soon(partial(method, request, caller))
                try:
                    await context.write(await self._wait(outcome, method.__name__, context))
                finally:
                    give_up(outcome)
        finally:
            self._conversations -= 1
            self._talking[caller.node] -= 1
            if not self._talking[caller.node]:
                del self._talking[caller.node]

    async def _heard(self, context: Context) -> Any:
        try:
            async with asyncio.timeout(Deadline.SILENCE):
                return await context.read()
        except TimeoutError:
            await self._abort(TierUnavailable(f"nothing was said for {Deadline.SILENCE:g} s"), context)

    def _ask_soon(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        if self._answers is None:
            self._answers = Answers()
            moment = _MOMENT_SECONDS if self._conversations > _FEW else 0.0
            asyncio.get_running_loop().call_later(moment, self._have_answered)
        return self._answers.ask(work)

    def _have_answered(self) -> None:
        """In the loop, a moment later."""
        answers, self._answers = self._answers, None
        if answers is None:
            return
        if self.nursery is None:
            answers.never()
            return
        try:
            self._token.run_sync_soon(answers.give)
        except trio.RunFinishedError:
            answers.never()

    async def caller(self, context: Context) -> Caller:
        """Runs in the loop: who calls. Aborts where nobody can have come in so."""
        if self._callers is None:
            return Caller(None, "a local process")
        caller = self._callers.get(urllib.parse.unquote(context.peer()))
        if caller is None:  # it found the inner socket, or its connection has ended
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "calls come in by the control port only")
        return caller

    async def _check_cluster(self, caller: Caller, context: Context) -> None:
        said = dict(context.invocation_metadata() or ()).get(CLUSTER_KEY, self._cluster)
        if self._cluster and said != self._cluster:
            error = TierRefused(
                f"this node belongs to cluster {self._cluster!r}, and the caller to {said!r}: correct the cluster or "
                "the addresses in node.yaml"
            )
            self._of_others.note("cluster", caller.address, str(error))
            await self._abort(error, context)

    def _start(self, task: Task, name: str, work: Callable[[], Awaitable[Any]]) -> None:
        def begin() -> None:
            if self.nursery is None:
                task.never()
            else:
                self.nursery.start_soon(task.attempt, work, name=f"grpc {name}")

        task.soon(begin)

    async def _wait(self, outcome: asyncio.Future[Any], name: str, context: Context) -> Any:
        try:
            return await outcome
        except Ended:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the process is shutting down, or the caller has gone")
        except FuseTierError as error:
            if isinstance(error, InvalidRequest):
                await self.refuse(error, name, context)
            await self._abort(error, context)
        except Exception:
            log.exception("grpc.handler_failed", call=name)
            reason = f"{name} met with an unexpected error: grpc.handler_failed in the log says more"
            await context.abort(grpc.StatusCode.INTERNAL, reason)

    async def refuse(self, error: InvalidRequest, name: str, context: Context) -> NoReturn:
        """Runs in the loop: has a malformed request told and counted, and tells its caller what is wrong with it."""
        if self._callers is not None:
            self._refused.note("request", (await self.caller(context)).address, f"{name}: {error}")
        await self._abort(error, context)

    async def _abort(self, error: FuseTierError, context: Context) -> NoReturn:
        await context.abort(statuses.code_of(error), statuses.details_of(error), statuses.metadata_of(error))
