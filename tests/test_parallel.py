from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.errors import Damaged
from fuse_tier.parallel import for_each


async def test_so_many_are_worked_on_at_once(autojump_clock: MockClock) -> None:
    busy: list[int] = []
    most: list[int] = []

    async def work(item: int) -> None:
        busy.append(item)
        most.append(len(busy))
        await trio.sleep(1)
        busy.remove(item)

    await for_each(range(7), work, 3)
    assert max(most) == 3
    assert len(most) == 7


async def test_the_first_failure_ends_it_and_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        await trio.sleep(item)
        if item == 2:
            raise Damaged("the second")
        done.append(item)

    with pytest.raises(Damaged, match="the second"):
        await for_each([1, 2, 3, 4], work, 4)
    assert done == [1]
