"""The bandwidth limit of a node: how much may move, and who goes first. In virtual time, but for the threads."""

from __future__ import annotations

import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from fuse_tier.wire.bulk.pacing import Link, Pace, Pacer, Ticket, Urgency

MIB = 1 << 20


class Simulation:
    """A pacer whose users are tasks under trio's clock."""

    def __init__(self, rate: float) -> None:
        self.pacer = Pacer(rate, trio.current_time())
        self.moved: list[tuple[float, str, int]] = []
        self._changed = trio.Event()

    async def take(self, who: str, urgency: Urgency, size: int) -> None:
        ticket = self.pacer.ask(urgency, size)
        while True:
            before = self.pacer.grants
            due = self.pacer.grant(trio.current_time())
            if self.pacer.grants != before:
                self._changed.set()
                self._changed = trio.Event()
            if ticket.granted:
                break
            with trio.move_on_at(trio.current_time() + 1 if due is None else due):
                await self._changed.wait()
        self.moved.append((trio.current_time(), who, size))

    async def move(self, who: str, urgency: Urgency, size: int) -> None:
        while size > 0:
            part = min(size, self.pacer.part)
            await self.take(who, urgency, part)
            size -= part

    def size(self, who: str, until: float) -> int:
        return sum(size for at, name, size in self.moved if name == who and at <= until)


async def test_streams_together_move_no_more_than_the_limit(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    simulation = Simulation(100 * MIB)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(simulation.move, str(number), Urgency.REPLICATION, 100 * MIB)
    assert trio.current_time() - began == pytest.approx(5.0, rel=0.05)
    for number in range(5):  # and none of them is left behind
        assert simulation.size(str(number), began + 2.5) == pytest.approx(50 * MIB, rel=0.2)


async def test_a_restore_goes_before_replication_which_never_stands_still(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    simulation = Simulation(100 * MIB)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(simulation.move, "copy", Urgency.REPLICATION, 100 * MIB)
        for _ in range(2):
            nursery.start_soon(simulation.move, "restore", Urgency.RESTORE, 100 * MIB)
        await trio.sleep(1.0)
        assert simulation.size("restore", began + 1) > 80 * MIB
        assert simulation.size("copy", began + 1) > 5 * MIB
    assert trio.current_time() - began == pytest.approx(6.0, rel=0.05)


async def test_a_link_that_was_idle_gives_a_short_burst_only(autojump_clock: MockClock) -> None:
    simulation = Simulation(100 * MIB)
    await trio.sleep(3600)
    began = trio.current_time()
    await simulation.move("copy", Urgency.REPLICATION, 100 * MIB)
    assert trio.current_time() - began == pytest.approx(1.0, rel=0.1)


@given(
    st.integers(1 << 17, 1 << 34),
    st.lists(st.tuples(st.sampled_from(Urgency), st.integers(1, 1 << 24), st.floats(0, 1)), max_size=50),
)
def test_whatever_is_asked_for_and_when_the_limit_holds_and_everybody_gets_a_turn(
    rate: int, wishes: list[tuple[Urgency, int, float]]
) -> None:
    now = 0.0
    pacer, tickets = Pacer(rate, now), list[Ticket]()
    granted = 0
    largest = max((size for _, size, _ in wishes), default=0)
    for urgency, size, pause in wishes:
        now += pause
        tickets.append(pacer.ask(urgency, size))
        pacer.grant(now)
        granted = sum(ticket.size for ticket in tickets if ticket.granted)
        assert granted <= now * rate + max(1 << 16, rate * 0.05) + largest + 1
    for _ in range(len(tickets) + 1):
        due = pacer.grant(now)
        if due is None:
            break
        assert due >= now
        now = due + 1e-9
    assert all(ticket.granted for ticket in tickets)


def test_who_gave_up_is_not_waited_for() -> None:
    pacer = Pacer(1000, 0.0)
    pacer.ask(Urgency.RESTORE, 1 << 20)
    assert pacer.grant(0.0) is None
    waiting = pacer.ask(Urgency.RESTORE, 1)
    assert pacer.grant(0.0) is not None
    pacer.give_up(waiting)
    pacer.give_up(waiting)
    assert pacer.grant(0.0) is None


def test_threads_get_what_they_ask_for_and_who_is_stopped_gets_away() -> None:
    pace, stopped = Pace(1 << 30), threading.Event()

    def take_some() -> None:
        for _ in range(8):
            pace.take(Urgency.REPLICATION, 1 << 20, threading.Event())

    threads = [threading.Thread(target=take_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow = Pace(1000)
    slow.take(Urgency.REPLICATION, 1 << 30, stopped)
    late = threading.Thread(target=slow.take, args=(Urgency.REPLICATION, 1, stopped))
    late.start()
    stopped.set()
    late.join()


async def test_replication_lets_restores_go_first_but_not_for_ever(autojump_clock: MockClock) -> None:
    link = Link()
    began = trio.current_time()
    await link.give_way()
    assert trio.current_time() == began
    async with trio.open_nursery() as nursery:

        async def restore() -> None:
            with link.restoring():
                await trio.sleep(0.5)

        nursery.start_soon(restore)
        nursery.start_soon(restore)
        await trio.testing.wait_all_tasks_blocked()
        await link.give_way()
        assert trio.current_time() - began == pytest.approx(0.5)
    with link.restoring():
        began = trio.current_time()
        await link.give_way()
        assert 0 < trio.current_time() - began < 10
