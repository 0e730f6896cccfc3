"""A bar on stderr while a node works, or this process does, where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fuse_tier.replicate.steps import Report
    from fuse_tier.wire import control_pb2 as pb

T = TypeVar("T")
_EVERY_SECONDS = 0.1


def watch(steps: Iterator[pb.Step]) -> pb.Step | None:
    """Shows the steps as they come and gives the last; without a terminal it shows nothing."""
    if not sys.stderr.isatty():
        last = None
        for last in steps:  # noqa: B007
            pass
        return last
    return _with_bar(steps)


async def working(work: Callable[[Report], Awaitable[T]]) -> T:
    """Does the work, which reports what it has done so far, and shows that; gives and raises what the work does."""
    import trio

    from fuse_tier.replicate.steps import Report

    report = Report()
    if not sys.stderr.isatty():
        return await work(report)
    outcome: list[T] = []
    failure: list[Exception] = []
    with _bar() as bar:
        shown = bar.add_task("", total=None)

        async def show() -> None:
            while True:
                _update(bar, shown, report.step())
                await trio.sleep(_EVERY_SECONDS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            try:
                outcome.append(await work(report))
            except Exception as error:  # noqa: BLE001 - raised below, in no group
                failure.append(error)
            _update(bar, shown, report.step())  # how far it came, however brief it was
            nursery.cancel_scope.cancel()
    if failure:
        raise failure[0]
    return outcome[0]


def _with_bar(steps: Iterator[pb.Step]) -> pb.Step | None:
    last: pb.Step | None = None
    with _bar() as bar:
        shown = bar.add_task("asking the node", total=None)
        for last in steps:
            _update(bar, shown, last)
    return last


def _update(bar: Progress, shown: TaskID, step: pb.Step) -> None:
    bar.update(shown, description=step.what, completed=step.moved_bytes, total=step.total_bytes or None)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
