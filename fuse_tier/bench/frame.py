"""How a benchmark is made and told: rows by name, each measured beside its reference in the same run.

Only ratios taken in one run mean anything on a machine that is shared, so ours and the reference take turns,
after a warm-up of both, and the median counts. A row never judges itself: bars are for people.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fuse_tier.errors import ConfigError

RUNS = 5

Measure = Callable[[], Awaitable[float]]
"""Does the thing once and gives the figure of that one time."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a row found: ours and the reference, in the row's unit."""

    value: float
    reference_value: float
    beside: str = ""
    """What the reference was this time, where the run itself has chosen it."""


Outcome = Figure | Mapping[str, Figure]
"""What a row's measurement gives: its figure, or by name those of all rows that are about the same thing."""


@dataclass(frozen=True, slots=True)
class Row:
    """A benchmark: its fixed name, what it measures against, and how."""

    name: str
    unit: str
    reference: str
    measure: Callable[[Path], Awaitable[Outcome]]
    """Gets an empty directory of its own and leaves nothing mounted in it."""
    needs_root: str = ""
    """What of it an ordinary user cannot do; empty where everybody can measure it."""
    lacks: Callable[[], str] = lambda: ""
    """What of it this machine lacks, and how it comes; empty where it can be measured."""

    def unmet(self, *, as_root: bool) -> str:
        """Why it cannot be measured here and now; empty when it can."""
        return f"has to be run as root: {self.needs_root}" if self.needs_root and not as_root else self.lacks()


@dataclass(frozen=True, slots=True)
class Result:
    """A row as scripts read it from ``bench.json``."""

    name: str
    value: float
    unit: str
    reference: str
    reference_value: float
    ratio: float

    @classmethod
    def of(cls, row: Row, figure: Figure) -> Result:
        """The figure over its reference."""
        ratio = figure.value / figure.reference_value
        reference = f"{row.reference} ({figure.beside})" if figure.beside else row.reference
        return cls(row.name, figure.value, row.unit, reference, figure.reference_value, ratio)


async def alternating(ours: Measure, reference: Measure, runs: int = RUNS) -> Figure:
    """Measures both in turn, after one time of each that does not count; gives the medians."""
    await ours()
    await reference()
    values, references = [], []
    for _ in range(runs):
        values.append(await ours())
        references.append(await reference())
    return Figure(statistics.median(values), statistics.median(references))


def measured(rows: Iterable[Row], measure: Callable[[Row], Outcome]) -> Iterator[Result]:
    """The results of rows, one after another. What gives the figures of several of them is measured once."""
    found: dict[str, Figure] = {}
    for row in rows:
        if row.name not in found:
            outcome = measure(row)
            found |= {row.name: outcome} if isinstance(outcome, Figure) else outcome
        yield Result.of(row, found[row.name])


def choose(rows: Sequence[Row], names: Sequence[str], *, as_root: bool) -> list[Row]:
    """The rows of these names, in the order of the registry; for none, all that can be measured here.

    Raises ConfigError for a name that is none, or of a row that cannot be measured here.
    """
    known = {row.name: row for row in rows}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no benchmark {name!r}; there are: {', '.join(known)}")
        if unmet := known[name].unmet(as_root=as_root):
            raise ConfigError(f"benchmark {name} {unmet}")
    return [row for row in rows if row.name in names or (not names and not row.unmet(as_root=as_root))]


def write_json(results: Sequence[Result], path: Path) -> None:
    """Writes the list that scripts read."""
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


def print_table(results: Sequence[Result], console: Console) -> None:
    """One table for people."""
    table = Table(title="fuse-tier bench")
    for column in ("name", "value", "unit", "reference", "reference value", "ratio"):
        table.add_column(column, justify="right" if column in ("value", "reference value", "ratio") else "left")
    for result in results:
        table.add_row(
            result.name,
            f"{result.value:.3g}",
            result.unit,
            result.reference,
            f"{result.reference_value:.3g}",
            f"{result.ratio:.2f}",
        )
    console.print(table)
