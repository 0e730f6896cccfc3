"""``fuse-tier bench``: how fast this is, beside what the machine could do, measured in the same run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import trio
from rich.console import Console

from fuse_tier.bench import (
    coordinating,
    fs_content,
    fs_names,
    fs_replicating,
    fs_room,
    fs_survival,
    job,
    peers,
    placement,
    restoring,
    streams,
)
from fuse_tier.bench.frame import Outcome, Row, choose, measured, print_table, write_json
from fuse_tier.bench.rows import ROWS as JOB_ROWS
from fuse_tier.localcluster import in_directory

__all__ = ["ROWS", "run_bench"]

_GROUP = "fuse_tier.bench"


def _rows_of_others() -> tuple[Row, ...]:
    """Of packages that are built on this one, and say so (entry points)."""
    found = sorted(entry_points(group=_GROUP), key=lambda entry: entry.name)
    return tuple(row for entry in found for row in entry.load())


ROWS = (
    *JOB_ROWS,
    *fs_content.ROWS,
    *fs_replicating.ROWS,
    *fs_names.ROWS,
    *fs_survival.ROWS,
    *fs_room.ROWS,
    *streams.ROWS,
    *peers.ROWS,
    *placement.ROWS,
    *coordinating.ROWS,
    *restoring.ROWS,
    *job.ROWS,
)


def run_bench(names: Sequence[str] = (), json_path: Path | None = None) -> None:
    """Runs the rows of these names (for none, all that can be), prints one table, writes ``json_path``.

    Raises FuseTierError.
    """
    console = Console()
    rows = (*ROWS, *_rows_of_others())
    as_root = os.geteuid() == 0
    chosen = choose(rows, names, as_root=as_root)
    for row in rows if not names else ():
        if row not in chosen:
            console.print(f"{row.name}: left out, because it {row.unmet(as_root=as_root)}", highlight=False)

    def measure(row: Row) -> Outcome:
        with console.status(row.name):
            outcome: Outcome = trio.run(in_directory, "fuse-tier-bench-", row.measure)
            return outcome

    results = []
    for result in measured(chosen, measure):
        results.append(result)
        if not console.is_terminal:
            console.print(f"{result.name}: {result.value:.3g} {result.unit}", highlight=False)
    print_table(results, console)
    if json_path is not None:
        write_json(results, json_path)
