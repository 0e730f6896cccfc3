from __future__ import annotations

import threading

import pytest
import trio

from fuse_tier.errors import NotFound
from fuse_tier.threads import run_interruptible


async def test_the_result_of_the_work_is_given_back() -> None:
    never = threading.Event()
    assert await run_interruptible(lambda: 42, never.set, trio.CapacityLimiter(1)) == 42
    assert not never.is_set()


async def test_what_the_work_raises_is_raised_unwrapped() -> None:
    def fail() -> None:
        raise NotFound("gone")

    with pytest.raises(NotFound, match="gone"):
        await run_interruptible(fail, lambda: None, trio.CapacityLimiter(1))


async def test_a_cancelled_call_interrupts_the_work_and_waits_for_its_end() -> None:
    started, interrupted, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        interrupted.wait()
        ended.set()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_interruptible, work, interrupted.set, trio.CapacityLimiter(1))
            await trio.to_thread.run_sync(started.wait)
            scope.cancel()
    assert scope.cancelled_caught
    assert ended.is_set()


async def test_after_a_cancellation_the_outcome_is_dropped() -> None:
    started, interrupted = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        interrupted.wait()
        raise NotFound("too late")

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_interruptible, work, interrupted.set, trio.CapacityLimiter(1))
            await trio.to_thread.run_sync(started.wait)
            scope.cancel()
    assert scope.cancelled_caught


async def test_waiting_for_the_limiter_can_be_cancelled_and_the_work_never_begins() -> None:
    limiter = trio.CapacityLimiter(1)
    begun: list[int] = []
    async with limiter:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_on_behalf_of_another, begun, limiter)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
    assert begun == []
    assert limiter.borrowed_tokens == 0


async def _on_behalf_of_another(begun: list[int], limiter: trio.CapacityLimiter) -> None:
    await run_interruptible(lambda: begun.append(1), lambda: None, limiter)


async def test_no_more_work_is_done_at_once_than_the_limiter_allows() -> None:
    limiter = trio.CapacityLimiter(2)
    lock = threading.Lock()
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        sum(range(20_000))
        with lock:
            running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(run_interruptible, work, lambda: None, limiter)
    assert 1 <= most <= 2
