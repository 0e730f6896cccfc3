"""Threads for a bucket's requests, at most so many at a time, and what becomes of them when nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.parallel import for_each
from fuse_tier.tiers.bucket_content import Interrupted
from fuse_tier.tiers.bucket_task import Task

T = TypeVar("T")

_SPARE: Final = 2


class Work:
    """Runs blocking work. ``patience`` is in seconds of failures: see ``Task.retry``."""

    def __init__(self, parallel: int, patience: float) -> None:
        self._parallel = parallel
        self._patience = patience
        self._limiter = trio.CapacityLimiter(parallel)
        self._spare = trio.CapacityLimiter(_SPARE)
        self._left: set[threading.Event] = set()

    def wait_for_left(self, seconds: float) -> None:
        """Waits for threads that were left behind; no longer than that. Blocks."""
        until = time.monotonic() + seconds
        for ended in tuple(self._left):
            ended.wait(max(0.0, until - time.monotonic()))

    @property
    def has_spare(self) -> bool:
        """Whether one of the threads is free that are kept for what must not wait for the others."""
        return self._spare.available_tokens > 0

    async def run(
        self, work: Callable[[Task], T], *, patience: float | None = None, spare: bool = False, leave: bool = False
    ) -> T:
        """Runs work in a thread, and raises what it raises.

        When cancelled, tells the thread to stop and waits for it, but no longer than THREAD_SHUTDOWN: one that is
        stuck in a socket is left behind, with nothing in its hands that is not its own. ``patience`` is another one
        than usual, ``spare`` takes one of the threads that are kept for what must not wait for the others, ``leave``
        leaves the thread behind at once.
        """
        task = Task(self._patience if patience is None else patience)
        finished = trio.Event()
        # What the thread gets and gives is taken out of its hands: trio keeps ``attempt`` until garbage is collected,
        # and it would keep megabytes of content with it.
        todo = [work]
        del work
        outcome: list[T] = []
        failure: list[Exception] = []

        ended = threading.Event()

        def attempt() -> None:
            try:
                outcome.append(todo.pop()(task))
            except Interrupted:
                return
            except Exception as error:  # noqa: BLE001 - carried to the caller below
                failure.append(error)
            finally:
                ended.set()
                self._left.discard(ended)

        async def stop_when_cancelled() -> None:
            try:
                await finished.wait()
            except trio.Cancelled:
                if not ended.is_set():
                    self._left.add(ended)
                task.stop.set()
                waiting.deadline = trio.current_time() + (0.0 if leave else Deadline.THREAD_SHUTDOWN)
                raise

        async with trio.open_nursery() as nursery, self._spare if spare else self._limiter:
            with trio.CancelScope(shield=True) as waiting:
                nursery.start_soon(stop_when_cancelled)
                # The limiter was taken above, where waiting for it can be cancelled.
                await trio.to_thread.run_sync(attempt, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
            finished.set()
            self._left.discard(ended)
        if failure:
            raise failure.pop()
        return outcome.pop()

    async def each(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Does work for each item, as many at once as there are threads; the first failure ends it and is raised."""
        await for_each(items, work, self._parallel)

    async def beside(
        self, background: Iterable[Callable[[], Awaitable[None]]], work: Callable[[], Awaitable[T]]
    ) -> T:
        """Does work with other things going on until it is done; raises what it raises."""
        outcome: list[T] = []
        failures: list[FuseTierError] = []
        async with trio.open_nursery() as nursery:
            for one in background:
                nursery.start_soon(one)
            try:
                outcome.append(await work())
            except FuseTierError as error:
                failures.append(error)
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        return outcome[0]
