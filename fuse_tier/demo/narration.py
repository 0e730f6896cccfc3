"""What the demo shows while it runs: bars on a terminal, a line a step otherwise, a table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fuse_tier.wire import control_pb2 as pb

_PLAIN_WIDTH = 200  # of a pipe or file, which has none: wide enough for all columns


@dataclass(frozen=True, slots=True)
class Row:
    """A step that is done. ``verified`` is None where there was nothing to compare."""

    step: str
    what: str
    source: str = ""
    bytes: int = 0
    seconds: float = 0.0
    verified: bool | None = None

    @property
    def gigabytes_per_second(self) -> float | None:
        """None where no bytes moved."""
        return self.bytes / self.seconds / 1e9 if self.bytes and self.seconds else None


@dataclass(slots=True)
class Ongoing:
    """A step under way: set what becomes of it; ``seconds`` is set at its end unless set before."""

    what: str = ""
    source: str = ""
    bytes: int = 0
    verified: bool | None = None
    seconds: float | None = None
    _progress: Progress | None = None
    _task: int = 0

    def follow(self, step: pb.Step) -> None:
        """Shows the progress that a node tells."""
        if self._progress is not None:
            self._progress.update(
                self._task,  # type: ignore[arg-type]
                description=step.what or None,
                completed=step.moved_bytes,
                total=step.total_bytes or None,
            )


@dataclass(slots=True)
class Narration:
    """Tells the demo's steps as they happen and keeps their rows."""

    console: Console
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str) -> Iterator[Ongoing]:
        """Runs a step; its row is kept when it succeeds."""
        ongoing = Ongoing()
        begun = time.perf_counter()
        if self.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
                ongoing._progress, ongoing._task = progress, progress.add_task(name, total=None)
                yield ongoing
        else:
            yield ongoing
        seconds = time.perf_counter() - begun if ongoing.seconds is None else ongoing.seconds
        row = Row(name, ongoing.what, ongoing.source, ongoing.bytes, seconds, ongoing.verified)
        self.rows.append(row)
        self.say(f"[green]ok[/green]  {row.step}: {_describe(row)}")

    def table(self) -> Table:
        """All rows."""
        table = Table(title="fuse-tier demo", box=box.SIMPLE)
        for column in ("step", "what", "from"):
            table.add_column(column, no_wrap=not self.console.is_terminal)
        for column in ("MiB", "seconds", "GB/s"):
            table.add_column(column, justify="right")
        table.add_column("verified")
        for row in self.rows:
            rate = row.gigabytes_per_second
            table.add_row(
                row.step,
                row.what,
                row.source,
                f"{row.bytes / (1 << 20):.0f}" if row.bytes else "",
                f"{row.seconds:.2f}",
                "" if rate is None else f"{rate:.2f}",
                {None: "", True: "[green]every byte[/green]", False: "[red]no[/red]"}[row.verified],
            )
        return table

    def as_json(self) -> str:
        """All rows, for programs."""
        return json.dumps([asdict(row) | {"gigabytes_per_second": row.gigabytes_per_second} for row in self.rows])


def _describe(row: Row) -> str:
    parts = [row.what]
    if row.source:
        parts.append(f"from {row.source}")
    if row.bytes:
        parts.append(f"{row.bytes / (1 << 20):.0f} MiB")
    parts.append(f"in {row.seconds:.2f} s")
    if row.verified:
        parts.append("every byte verified")
    return ", ".join(parts)
