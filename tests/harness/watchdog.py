"""No test runs for ever, whatever clock it uses.

Three bounds of real time, each for when the one before could not do it: a trio test's body is cancelled, so
that everything it owns is cleaned up; pytest-timeout raises in the main thread; pytest's faulthandler dumps
all stacks and ends the run.
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

_GRACE_SECONDS = 30.0  # for a cancelled test to stop its processes


def body_seconds(timeout_seconds: float) -> float:
    """What of a test's whole bound its body may take."""
    return max(0.8 * timeout_seconds, timeout_seconds - _GRACE_SECONDS)


def bounded(body: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """The trio test ``body``, cancelled and failed after so many seconds of real time."""

    @functools.wraps(body)
    async def run(*args: Any, **kwargs: Any) -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            timer = threading.Timer(seconds, token.run_sync_soon, [scope.cancel])
            timer.daemon = True
            timer.start()
            try:
                await body(*args, **kwargs)
            except trio.Cancelled:
                traceback.print_exc()  # shows where it hung
                raise
            finally:
                timer.cancel()
        if scope.cancelled_caught:
            pytest.fail(f"the test was still running after {seconds:g} s of real time", pytrace=False)

    return run
