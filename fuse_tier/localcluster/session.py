"""Runs something with a cluster from first to last: a directory for it, signals, one error instead of a group."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster.processes import mounts_below

T = TypeVar("T")


async def in_directory(prefix: str, main: Callable[[Path], Awaitable[T]]) -> T:
    """Runs ``main`` with a temporary directory; nothing is left of it, however it ends. In the main thread.

    SIGTERM ends it as Ctrl-C does. Raises the FuseTierError that ended it, out of whatever groups.
    """
    try:
        with _directory(prefix) as directory:
            return await _until_signalled(main, directory)
    except BaseExceptionGroup as group:
        error = first_of_ours(group)
        if error is None:
            raise
        raise error from None


async def _until_signalled(main: Callable[[Path], Awaitable[T]], directory: Path) -> T:
    outcome: list[T] = []

    async def cancel_when_signalled(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_signalled, nursery.cancel_scope)
        outcome.append(await main(directory))
        nursery.cancel_scope.cancel()
    if not outcome:
        raise FuseTierError("interrupted by SIGTERM; everything that was started has ended and been removed")
    return outcome[0]


@contextmanager
def _directory(prefix: str) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield directory
    finally:
        if not mounts_below(directory):  # never delete through a mount that could not be taken away
            shutil.rmtree(directory)


def first_of_ours(error: BaseException) -> FuseTierError | None:
    """The first error of ours, if there are no others in whatever groups."""
    if isinstance(error, BaseExceptionGroup):
        found = [ours for part in error.exceptions if (ours := first_of_ours(part)) is not None]
        return found[0] if found and len(found) == len(error.exceptions) else None
    return error if isinstance(error, FuseTierError) else None
