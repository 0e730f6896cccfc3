"""Long calls of the node's API: what they have done so far, and at last what came of them."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from fuse_tier.errors import TierFull
from fuse_tier.ram.room import NO_ROOM
from fuse_tier.wire import control_pb2 as pb

_EVERY_SECONDS = 0.2


class Report:
    """What a long call tells while it works. Bytes may be added from any thread."""

    def __init__(self) -> None:
        self.what = ""
        self.total_bytes = 0
        self._moved = 0
        self._lock = threading.Lock()

    def begin(self, what: str, total_bytes: int = 0) -> None:
        """The next part of the work."""
        with self._lock:
            self.what, self.total_bytes, self._moved = what, total_bytes, 0

    def moved(self, size: int) -> None:
        """Some bytes of this part are done."""
        with self._lock:
            self._moved += size

    def step(self) -> pb.Step:
        """The state of now."""
        with self._lock:
            return pb.Step(what=self.what, moved_bytes=self._moved, total_bytes=self.total_bytes)


async def steps(nursery: trio.Nursery, work: Callable[[Report], Awaitable[dict[str, Any]]]) -> AsyncIterator[pb.Step]:
    """Runs ``work`` as a task of ``nursery`` and yields its progress, and its result as the facts of the last step.

    What it raises is raised here. When nobody wants the steps any more, the work is cancelled.
    """
    report = Report()
    outcome: list[dict[str, Any]] = []
    failure: list[Exception] = []
    done = trio.Event()
    scope = trio.CancelScope()

    async def run() -> None:
        try:
            with scope:
                outcome.append(await work(report))
        except Exception as error:  # noqa: BLE001 - carried to the caller below
            failure.append(_in_our_words(error, report.what))
        finally:
            done.set()

    nursery.start_soon(run)
    try:
        while not done.is_set():
            yield report.step()
            with trio.move_on_after(_EVERY_SECONDS):
                await done.wait()
    finally:
        scope.cancel()
    if failure:
        raise failure[0]
    if outcome:
        yield pb.Step(what=report.what, done=True, facts=json.dumps(outcome[0]))


def _in_our_words(error: Exception, doing: str) -> Exception:
    """A RAM tier that is full can be met by anything that is done here."""
    if not isinstance(error, OSError) or error.errno not in NO_ROOM:
        return error
    told = TierFull(
        f"the RAM tier has no room left ({doing or 'before anything was done'}): see `fuse-tier status` for who "
        "fills it; room comes when older checkpoints are in the bucket, or jobs remove theirs"
    )
    told.__cause__ = error
    return told
