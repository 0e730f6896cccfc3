"""Turns by urgency."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_tier.replicate.turns import Turns


async def test_of_those_that_wait_the_most_urgent_is_next_and_of_equals_the_first(autojump_clock: MockClock) -> None:
    turns = Turns(1)
    order: list[str] = []

    async def take(name: str, urgency: int) -> None:
        async with turns.taken(lambda: (urgency,)):
            order.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name, urgency in (("first", 5), ("late", 5), ("later", 5), ("urgent", 0)):
            nursery.start_soon(take, name, urgency)
            await wait_all_tasks_blocked()
    assert order == ["first", "urgent", "late", "later"]


async def test_what_is_urgent_may_change_while_some_wait(autojump_clock: MockClock) -> None:
    turns = Turns(1)
    order: list[int] = []
    sign = 1

    async def take(number: int) -> None:
        async with turns.taken(lambda: (sign * number,)):
            order.append(number)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
        await trio.sleep(1.5)
        sign = -1
    assert order == [0, 1, 4, 3, 2]


async def test_no_more_than_so_many_have_a_turn_however_others_give_up(autojump_clock: MockClock) -> None:
    turns = Turns(2)
    now = most = 0

    async def take(patience: float) -> None:
        nonlocal now, most
        with trio.move_on_after(patience):
            async with turns.taken(lambda: (0,)):
                now += 1
                most = max(most, now)
                try:
                    await trio.sleep(1)
                finally:
                    now -= 1

    async with trio.open_nursery() as nursery:
        for patience in (0.5, 1, 2, 3, 0, 5, 9, 1, 0.5, 9):
            nursery.start_soon(take, patience)
    assert (now, most) == (0, 2)
    with trio.fail_after(1):
        async with turns.taken(lambda: (0,)), turns.taken(lambda: (0,)):
            assert now == 0
