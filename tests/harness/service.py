"""What a cluster's services do: connections to one address go to whatever is behind the service at that moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio


async def serve_service(port: int, behind: Callable[[], Awaitable[int | None]]) -> None:
    """Until cancelled, on loopback. ``behind`` gives the port of who is to be reached; None for nobody."""
    await trio.serve_tcp(partial(_pass_on, behind), port, host="127.0.0.1")


async def _pass_on(behind: Callable[[], Awaitable[int | None]], near: trio.SocketStream) -> None:
    port = await behind()
    if port is None:
        return
    try:
        far = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return
    async with far, trio.open_nursery() as nursery:

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            try:
                async for chunk in source:
                    await sink.send_all(chunk)
                await sink.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                nursery.cancel_scope.cancel()  # one side has ended: so does the other

        nursery.start_soon(pump, near, far)
        nursery.start_soon(pump, far, near)
