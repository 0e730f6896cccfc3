"""``fuse-tier bench``: how fast this is, beside what the machine could do, measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio
from rich.console import Console

from fuse_tier.bench import peers, placement, restoring, streams
from fuse_tier.bench.frame import Result, Row, choose, print_table, write_json
from fuse_tier.bench.rows import ROWS as JOB_ROWS
from fuse_tier.localcluster import in_directory

__all__ = ["ROWS", "run_bench"]

ROWS = (*JOB_ROWS, *streams.ROWS, *peers.ROWS, *placement.ROWS, *restoring.ROWS)


def run_bench(names: Sequence[str] = (), json_path: Path | None = None) -> None:
    """Runs the rows of these names (all for none), prints one table, writes ``json_path``. Raises FuseTierError."""
    console = Console()
    results = []
    for row in choose(ROWS, names):
        with console.status(row.name):
            results.append(_measure(row))
        if not console.is_terminal:
            console.print(f"{row.name}: {results[-1].value:.3g} {row.unit}", highlight=False)
    print_table(results, console)
    if json_path is not None:
        write_json(results, json_path)


def _measure(row: Row) -> Result:
    return Result.of(row, trio.run(in_directory, "fuse-tier-bench-", row.measure))
