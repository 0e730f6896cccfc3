"""Waiting for a fact that nobody announces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


async def until(fact: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Asks again and again until it is so. Raises TooSlowError, by trio's clock."""
    with trio.fail_after(seconds):
        while not await fact():  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(0.05)
