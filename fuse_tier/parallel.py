"""The same work for many things, some at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from fuse_tier.errors import FuseTierError

T = TypeVar("T")


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Does work for each item, for so many at once; the first failure of ours ends it and is raised as it is."""
    failures: list[FuseTierError] = []
    rest = iter(items)

    async def take_turns() -> None:
        for item in rest:
            try:
                await work(item)
            except FuseTierError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(take_turns)
    if failures:
        raise failures[0]
