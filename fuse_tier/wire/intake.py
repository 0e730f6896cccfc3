"""How much of what one caller says is taken in at once: a request is read when it is its caller's turn, not before.

gRPC would read whatever comes, of every call at the same time; what is not read waits at its sender, by the flow
control of HTTP/2. How long a request is shows only when it is read. So of one caller one request is read at a time,
and beside it one of those that may be long; the next of either kind when that has been read, or, if it is long,
answered. Lives in the loop that gRPC serves in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any, Final
from weakref import WeakValueDictionary

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fuse_tier.errors import InvalidRequest
from fuse_tier.wire.handlers import Bridge, Context

MOST_BYTES: Final = 16 << 20  # of a request that carries no manifest
_LIGHT_BYTES: Final = 1 << 20  # of which each call may have one


class Intake(grpc.aio.ServerInterceptor):
    """Of one server. ``carriers`` are the full names of calls whose requests may be as long as gRPC lets them be."""

    def __init__(self, bridge: Bridge, carriers: Collection[str]) -> None:
        self._bridge = bridge
        self._carriers = carriers
        self._turns: WeakValueDictionary[tuple[str, bool], asyncio.Lock] = WeakValueDictionary()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """On the wire a single message is a stream of one: taken as that, it is read when it is asked for."""
        found = await continuation(details)
        if found is None or found.unary_unary is None:
            return found
        handler: Any = found  # whose types are those of gRPC without asyncio
        carries = details.method in self._carriers
        most = math.inf if carries else MOST_BYTES

        async def answer(_: object, context: Context) -> Any:
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(await self._turn(carries, context))
                request, length, trouble = await _read(handler.request_deserializer, most, context)
                if length <= _LIGHT_BYTES:
                    await turn.aclose()
                if trouble:
                    await self._bridge.refuse(InvalidRequest(trouble), details.method, context)
                work = handler.unary_unary(request, context)
                del request  # see Bridge.unary
                return await work

        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    async def _turn(self, carries: bool, context: Context) -> asyncio.Lock:
        caller = await self._bridge.caller(context)
        key = (caller.node or caller.address, carries)
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = asyncio.Lock()
        return turn


async def _read(deserialize: Callable[[bytes], Any], most: float, context: Context) -> tuple[Any, int, str]:
    """A request, how long it was, and what is wrong with it."""
    encoded: Any = await context.read()
    if encoded is grpc.aio.EOF:
        return None, 0, "no request came"
    length = len(encoded)
    if length > most:
        return None, length, f"a request of {length} bytes is longer than {most}"
    try:
        return deserialize(encoded), length, ""
    except DecodeError:
        return None, length, "the request is no message"
