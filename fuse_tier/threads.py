"""Blocking work in threads that cancellation can end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run_interruptible(
    work: Callable[[], T], interrupt: Callable[[], object], limiter: trio.CapacityLimiter
) -> T:
    """Runs ``work`` in a thread; when cancelled, calls ``interrupt`` and waits until the thread has ended.

    ``interrupt`` makes ``work`` return or raise soon (shutting its socket down, setting a flag). It may come
    at any time, also just after ``work`` has ended. No thread outlives the call. What ``work`` raises is
    raised unwrapped; after a cancellation its outcome is dropped in favour of ``trio.Cancelled``.
    """
    finished = trio.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    async def interrupt_when_cancelled() -> None:
        try:
            await finished.wait()
        except trio.Cancelled:
            interrupt()
            raise

    def attempt() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller below
            failure.append(error)

    async with trio.open_nursery() as nursery, limiter:
        nursery.start_soon(interrupt_when_cancelled)
        with trio.CancelScope(shield=True):
            # The limiter was taken above, where waiting for it can be cancelled.
            await trio.to_thread.run_sync(attempt, limiter=trio.CapacityLimiter(1))
        finished.set()
    if failure:
        raise failure[0]
    return outcome[0]
