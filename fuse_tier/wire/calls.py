"""Calls of more than one message, as who makes them sees it: gRPC's threads on one side, trio on the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc
import trio

from fuse_tier.errors import DeadlineExceeded, FuseTierError, TierUnavailable
from fuse_tier.threads import run_interruptible


class Conversation:
    """Messages of one call, one at a time. With the first that is not answered it is over.

    Answers end it with what their handler raised, or TierUnavailable, or DeadlineExceeded.
    """

    def __init__(
        self,
        name: str,
        messages: SimpleQueue[Any],
        answers: Any,
        is_current: Callable[[], bool],
        explain: Callable[..., FuseTierError],
    ) -> None:
        self._name = name
        self._messages = messages
        self._answers = answers
        self._is_current = is_current
        self._explain = explain
        self._limiter = trio.CapacityLimiter(1)

    @property
    def is_usable(self) -> bool:
        """Whether it has not ended, and goes over a connection of the certificates of now."""
        return bool(self._answers.is_active()) and self._is_current()

    async def ask(self, message: Any, deadline_seconds: float) -> Any:
        """One message, one answer."""
        self._messages.put(message)
        answer: Any = None
        try:
            with trio.move_on_after(deadline_seconds) as waiting:
                take = partial(next, self._answers, None)
                answer = await run_interruptible(take, self._answers.cancel, self._limiter)
        except grpc.RpcError as error:
            raise self._explain(error, deadline_seconds=deadline_seconds) from error
        if waiting.cancelled_caught:
            raise DeadlineExceeded(f"a message of {self._name} was not answered within {deadline_seconds:g} s")
        if answer is None:
            raise TierUnavailable(f"{self._name} was ended from there")
        return answer

    def close(self) -> None:
        """Ends the call, if it has not ended."""
        self._answers.cancel()
        self._messages.put(None)  # for the thread that sends them


class Steps:
    """The answers of a stream. gRPC itself cancels a call of which nobody keeps the iterator."""

    def __init__(
        self, answers: Any, rebuild: Callable[[grpc.RpcError], FuseTierError], limiter: trio.CapacityLimiter
    ) -> None:
        self._answers = answers
        self._rebuild = rebuild
        self._limiter = limiter

    def __aiter__(self) -> Steps:
        return self

    async def __anext__(self) -> Any:
        try:
            step = await run_interruptible(partial(next, self._answers, None), self._answers.cancel, self._limiter)
        except grpc.RpcError as error:
            raise self._rebuild(error) from error
        if step is None:
            raise StopAsyncIteration
        return step
