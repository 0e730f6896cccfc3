"""A TCP proxy that cuts connections after so many bytes, so that a transfer breaks where a test wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

_STEP = 1 << 16


@dataclass(slots=True)
class CuttingProxy:
    """``budgets`` are bytes, both ways together, for the next connections; with none left they are not cut."""

    target: str
    budgets: list[int]
    address: str = ""
    connections: int = 0
    passed: list[int] = field(default_factory=list)  # bytes by connection

    async def serve(self, near: trio.SocketStream) -> None:
        number, self.connections = self.connections, self.connections + 1
        budget = self.budgets.pop(0) if self.budgets else None
        self.passed.append(0)
        host, _, port = self.target.rpartition(":")
        far = await trio.open_tcp_stream(host, int(port))
        async with near, far, trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                try:
                    async for chunk in source:
                        left = len(chunk) if budget is None else min(len(chunk), budget - self.passed[number])
                        await sink.send_all(chunk[:left])
                        self.passed[number] += left
                        if budget is not None and self.passed[number] >= budget:
                            break
                    else:
                        await sink.send_eof()
                        return
                except trio.BrokenResourceError:
                    pass  # one side has ended: so does the other
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)


@asynccontextmanager
async def cutting(target: str, budgets: Iterable[int] = ()) -> AsyncIterator[CuttingProxy]:
    """Runs until the block ends."""
    proxy = CuttingProxy(target, list(budgets))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
        proxy.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel()
