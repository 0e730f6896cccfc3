"""A small worker at the other end of the daemon's channel: it answers as the test says, and takes notes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from fuse_tier.wire.channel import Arguments, Channel, Handler, serve

CALL_SECONDS = 5.0
PATIENCE_SECONDS = 20.0


class SmallWorker:
    """One worker. ``answers`` may be changed at any time."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Arguments]] = []
        self.answers: dict[str, Callable[[Arguments], Awaitable[Any]]] = {"make_room": _give_nothing_up}
        self.channel: Channel | None = None
        self._news = trio.Event()

    async def accept(self, stream: trio.SocketStream) -> None:
        handlers: Mapping[str, Handler] = {
            name: self._handler(name)
            for name in ("hello", "changed", "sync", "state", "materialize", "make_room", "begin_again", "goodbye")
        }
        channel = Channel(stream, handlers)
        self.channel = channel
        await channel.run()

    def _handler(self, name: str) -> Handler:
        async def answer(arguments: Arguments) -> Any:
            self.calls.append((name, arguments))
            self._news.set()
            self._news = trio.Event()
            return await self.answers[name](arguments) if name in self.answers else {}

        return answer

    async def heard(self, name: str, fits: Callable[[Arguments], bool] = lambda arguments: True) -> Arguments:
        """Waits for a call."""
        return (await self.heard_often(name, 1, fits))[0]

    async def heard_often(
        self, name: str, times: int, fits: Callable[[Arguments], bool] = lambda arguments: True
    ) -> list[Arguments]:
        """Waits for so many calls."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                news = self._news
                found = [arguments for called, arguments in self.calls if called == name and fits(arguments)]
                if len(found) >= times:
                    return found
                await news.wait()

    async def ask(self, name: str, **arguments: Any) -> Any:
        """Calls the daemon."""
        assert self.channel
        return await self.channel.call(name, CALL_SECONDS, **arguments)


async def _give_nothing_up(arguments: Arguments) -> dict[str, Any]:
    return {"free": 0, "coming": False}


@asynccontextmanager
async def running_worker(socket: str) -> AsyncIterator[SmallWorker]:
    """Serves until the block is left, and cuts all connections then."""
    worker = SmallWorker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, socket, worker.accept)
        yield worker
        nursery.cancel_scope.cancel()
