"""What is called for each kind of request."""

from __future__ import annotations

import errno
import os
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import trio

from fuse_tier.fs.attribute_requests import ATTRIBUTE_REQUESTS
from fuse_tier.fs.bodies import Handler, opened_reply
from fuse_tier.fs.file_requests import FILE_REQUESTS
from fuse_tier.fs.handles import Unanswered
from fuse_tier.fs.lives import ASKS, Lives
from fuse_tier.fs.name_requests import NAME_REQUESTS
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Request
from fuse_tier.fs.session import Answer, Operation
from fuse_tier.mount.messages import OPENED, Opcode


def dispatch(operations: Operations, lives: Lives | None = None) -> dict[int, Operation]:
    """What to call for each kind of request that is answered; the kernel gets ENOSYS for others.

    ``lives`` says which of those that look at the root have to wait, and hears of who writes; None: none.
    """
    table: dict[int, Operation] = {opcode: partial(handler, operations) for opcode, handler in _HANDLERS.items()}
    if lives is not None:
        table |= {opcode: partial(_admitted, lives, table[opcode]) for opcode in ASKS}
    return table


def _admitted(lives: Lives, operation: Operation, request: Request, body: memoryview) -> Any:
    if lives.admits(request, body):
        return operation(request, body)
    return _once_admitted(lives, operation, request, memoryview(bytes(body)))


async def _once_admitted(lives: Lives, operation: Operation, request: Request, body: memoryview) -> Answer:
    with trio.CancelScope() as scope:
        afterwards, request.ends = request.ends, scope  # most is done once it has begun
        await lives.admit(request)
    request.ends = afterwards
    if scope.cancelled_caught:
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))
    answer = operation(request, body)
    return await answer if isinstance(answer, Coroutine) else answer


def opened_handle(opcode: int, answer: Answer) -> int | None:
    """The handle of a file that a reply opens, if it is one that does."""
    if not answer or opcode not in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE):
        return None
    return int(OPENED.unpack_from(answer, len(answer) - OPENED.size)[0])


def owed_answer(operations: Operations, owed: Unanswered) -> bytes:
    """What a daemon before this one was about to answer, if it did not."""
    entry = operations.entry_of(owed.opened.handle) if owed.with_entry else b""
    return entry + opened_reply(owed.opened)


def _destroy(operations: Operations, request: Request, body: memoryview) -> None:
    """The mount has ended; the next read says so."""


_HANDLERS: Final[dict[int, Handler]] = {
    **NAME_REQUESTS,
    **FILE_REQUESTS,
    **ATTRIBUTE_REQUESTS,
    Opcode.DESTROY: _destroy,
}
