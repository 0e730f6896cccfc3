"""The asyncio loop in which gRPC serves: one for the process, in a thread of its own.

gRPC's server keeps one queue of events for a process, and several loops would each take what is another's; so the
loop begins with the first server and stays. Calls that are held, however many, are no threads in it. Who asks for
something to be done here waits for it in trio, and is not cancelled meanwhile: what is done here is over soon.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

import trio

T = TypeVar("T")

_lock: Final = threading.Lock()
_running: list[asyncio.AbstractEventLoop] = []


def loop() -> asyncio.AbstractEventLoop:
    """The loop, which runs."""
    with _lock:
        if not _running:
            begun: Future[asyncio.AbstractEventLoop] = Future()
            threading.Thread(target=_run, args=(begun,), name="grpc-loop", daemon=True).start()
            _running.append(begun.result())
        return _running[0]


def _run(begun: Future[asyncio.AbstractEventLoop]) -> None:
    async def forever() -> None:
        begun.set_result(asyncio.get_running_loop())
        await asyncio.Event().wait()

    asyncio.run(forever())


async def do(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Does something in the loop that is over soon, and gives what it gives."""
    token, done = trio.lowlevel.current_trio_token(), trio.Event()

    def tell(_: object) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future = asyncio.run_coroutine_threadsafe(work(), loop())
    future.add_done_callback(tell)
    with trio.CancelScope(shield=True):
        await done.wait()
    return future.result()
