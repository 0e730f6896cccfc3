"""A bar on stderr while a node works, where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuse_tier.wire import control_pb2 as pb


def watch(steps: Iterator[pb.Step]) -> pb.Step | None:
    """Shows the steps as they come and gives the last; without a terminal it shows nothing."""
    if not sys.stderr.isatty():
        last = None
        for last in steps:  # noqa: B007
            pass
        return last
    return _with_bar(steps)


def _with_bar(steps: Iterator[pb.Step]) -> pb.Step | None:
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
    last: pb.Step | None = None
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown = progress.add_task("asking the node", total=None)
        for last in steps:
            progress.update(shown, description=last.what, completed=last.moved_bytes, total=last.total_bytes or None)
    return last
