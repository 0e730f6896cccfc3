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


async def test_what_is_late_holds_up_nobody_elsewhere_and_only_so_many_are_let_go_on_besides(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(2, at_place=1, late=1)
    begun: list[tuple[str, float]] = []

    async def take(place: str, patience: float) -> None:
        async with turns.taken(lambda: (0,), place, patience):
            begun.append((place, trio.current_time() - started))
            await trio.sleep(100)

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for place, patience in (("a", 10), ("b", 500), ("c", 30), ("d", 200)):
            nursery.start_soon(take, place, patience)
            await wait_all_tasks_blocked()
    # At 10 a is late, and c goes; at 40 c is late, too, but only one goes on besides.
    assert begun == [("a", 0), ("b", 0), ("c", 10), ("d", 100)]


async def test_who_is_late_sooner_than_those_before_is_not_waited_for_longer(autojump_clock: MockClock) -> None:
    turns = Turns(1, late=2)
    begun: list[tuple[str, float]] = []

    async def take(name: str, patience: float, seconds: float) -> None:
        async with turns.taken(lambda: (0,), name, patience):
            begun.append((name, trio.current_time() - started))
            await trio.sleep(seconds)

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for name, patience, seconds in (("long", 1000, 5), ("slow", 10, 1000), ("next", 10, 1)):
            nursery.start_soon(take, name, patience, seconds)
            await wait_all_tasks_blocked()
    assert begun == [("long", 0), ("slow", 5), ("next", 15)]


async def test_at_one_place_are_no_more_than_so_many_and_others_go_before_who_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(3, at_place=2, late=3)
    order: list[str] = []

    async def take(name: str, urgency: int, seconds: float) -> None:
        async with turns.taken(lambda: (urgency,), name[0], 1):
            order.append(name)
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        for name, urgency, seconds in (("a1", 0, 10), ("a2", 0, 20), ("a3", 0, 1), ("b", 5, 1), ("a4", -1, 20)):
            nursery.start_soon(take, name, urgency, seconds)
            await wait_all_tasks_blocked()
    assert order == ["a1", "a2", "b", "a4", "a3"]
