from __future__ import annotations

import trio
from trio.testing import MockClock

from controller.reconciling.queue import Queue


async def test_each_is_looked_at_once_however_often_it_has_changed(autojump_clock: MockClock) -> None:
    queue = Queue()
    queue.add(["a"])
    await trio.sleep(1)
    queue.add(["b", "a"])
    assert [await queue.next(), await queue.next()] == ["a", "b"]
    with trio.move_on_after(100) as waited:
        await queue.next()
    assert waited.cancelled_caught


async def test_what_failed_comes_again_ever_more_seldom_and_at_once_when_it_has_changed(
    autojump_clock: MockClock,
) -> None:
    queue = Queue()
    queue.add(["a"])
    await queue.next()
    pauses = []
    for _ in range(10):
        began = trio.current_time()
        queue.again("a")
        assert await queue.next() == "a"
        pauses.append(round(trio.current_time() - began, 3))
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    began = trio.current_time()
    queue.again("a")
    queue.add(["a"])
    assert await queue.next() == "a"
    assert trio.current_time() == began
    queue.done("a")
    queue.again("a")
    await queue.next()
    assert round(trio.current_time() - began, 3) == 0.2, "a success begins anew"


async def test_who_waits_hears_of_what_is_added(autojump_clock: MockClock) -> None:
    queue = Queue()

    async def add_later() -> None:
        await trio.sleep(5)
        queue.add(["a"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add_later)
        assert await queue.next() == "a"
