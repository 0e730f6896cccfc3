"""Copies that end when what they send is given up."""

from __future__ import annotations

import math

import trio
from trio.testing import wait_all_tasks_blocked

from fuse_tier.replicate.sending import Sending


async def test_a_copy_of_what_is_given_up_ends_and_others_go_on(nursery: trio.Nursery) -> None:
    sending, went_on = Sending(), trio.Event()

    async def copy(number: int) -> None:
        with sending.of(number):
            await trio.sleep(math.inf)
        went_on.set()

    for number in (1, 1, 2):
        nursery.start_soon(copy, number)
    await wait_all_tasks_blocked()
    assert sending.numbers == {1, 2}
    await sending.stop(1)
    assert sending.numbers == {2}
    await went_on.wait()


async def test_nobody_reads_any_more_when_it_was_stopped(nursery: trio.Nursery) -> None:
    """A thread that sends comes back a moment after it was told to."""
    sending, may_end = Sending(), trio.Event()
    reads = False

    async def copy() -> None:
        nonlocal reads
        with sending.of(1):
            reads = True
            with trio.CancelScope(shield=True):
                await may_end.wait()
            reads = False

    nursery.start_soon(copy)
    await wait_all_tasks_blocked()
    nursery.start_soon(sending.stop, 1)
    await wait_all_tasks_blocked()
    assert reads
    may_end.set()
    await sending.stop(1)
    assert not reads


async def test_what_nobody_sends_is_stopped_at_once() -> None:
    await Sending().stop(1)
