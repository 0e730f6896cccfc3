"""What is handed from the loop that gRPC serves in to trio, and what comes back.

The two run in threads of their own. Each method says which of them it is called in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from fuse_tier.errors import FuseTierError

_STREAMED_AHEAD = 2  # answers that a caller has not taken yet


class Ended(Exception):
    """The handler was cancelled, or never begun."""


class Task:
    """A handler in trio, as the loop sees it. ``outcome`` is settled once the handler has ended."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self.loop.create_future()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.room = trio.Semaphore(_STREAMED_AHEAD)
        self._token = token
        self._scope = trio.CancelScope()

    async def attempt(self, work: Callable[[], Awaitable[Any]]) -> None:
        """In trio: does it, and tells the loop what came of it."""
        result: Any = None
        failure: Exception | None = None
        try:
            with self._scope:
                result = await work()
            if self._scope.cancelled_caught:
                failure = Ended()
        except Exception as error:  # noqa: BLE001 - raised or logged by who waits for the outcome
            failure = _sole_cause(error)
            if isinstance(failure, FuseTierError):
                # Where it comes from nobody asks, and what was said, however long, would stay with it for a while.
                failure = failure.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
        except BaseException:
            failure = Ended()
            raise
        finally:
            self.tell(partial(self._settle, result, failure))

    def never(self) -> None:
        """Nothing is served any more."""
        self.tell(partial(self._settle, None, Ended()))

    def tell(self, action: Callable[[], object]) -> None:
        """From trio to the loop, which lasts as long as the process."""
        self.loop.call_soon_threadsafe(action)

    def soon(self, action: Callable[[], object]) -> None:
        """From the loop to trio, which may have ended."""
        try:
            self._token.run_sync_soon(action)
        except trio.RunFinishedError:
            self._settle(None, Ended())

    def cancel(self) -> None:
        """From the loop: nobody is interested any more."""
        give_up(self.outcome)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)

    def _settle(self, result: Any, failure: Exception | None) -> None:
        _settle(self.outcome, result, failure)
        self.answers.put_nowait(END)


class Answers:
    """What a plain function says in trio to messages that came within a moment, as the loop sees it.

    To wake the other loop, and who waits behind it, costs more than an answer does: where there are many, those of a
    moment go together.
    """

    def __init__(self) -> None:
        """In the loop."""
        self._loop = asyncio.get_running_loop()
        self._asked: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []

    def ask(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """In the loop: what it gives, or raises."""
        outcome: asyncio.Future[Any] = self._loop.create_future()
        self._asked.append((work, outcome))
        return outcome

    def give(self) -> None:
        """In trio."""
        given: list[tuple[asyncio.Future[Any], Any, Exception | None]] = []
        for work, outcome in self._asked:
            try:
                given.append((outcome, work(), None))
            except Exception as error:  # noqa: BLE001 - raised or logged by who waits for the outcome
                given.append((outcome, None, error))
        self._loop.call_soon_threadsafe(_settle_all, given)

    def never(self) -> None:
        """In the loop: nothing is served any more."""
        _settle_all([(outcome, None, Ended()) for _, outcome in self._asked])


def _settle_all(given: Iterable[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for outcome, result, failure in given:
        _settle(outcome, result, failure)


def give_up(outcome: asyncio.Future[Any]) -> None:
    """In the loop: nobody waits for it any more."""
    if not outcome.cancel() and not outcome.cancelled():
        outcome.exception()  # as if somebody had looked at it


def _settle(outcome: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if outcome.done():  # the caller has gone
        return
    if failure is not None:
        outcome.set_exception(failure)
    else:
        outcome.set_result(result)


END = object()  # after the last answer of a stream


def _sole_cause(error: Exception) -> Exception:
    """What went wrong, without the groups that nurseries put around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
