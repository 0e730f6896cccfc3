from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fs.conftest import mounted, place, start  # noqa: F401
from tests.public.suites import Report, counts

Rows = dict[tuple[str, str], str]
_ROWS = pytest.StashKey[Rows]()


class Table:
    """What is shown after the run: a row for each suite and filesystem."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def add(self, suite: str, filesystem: str, report: Report) -> None:
        self._rows[suite, filesystem] = counts(report)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    yield Table(request.config.stash.setdefault(_ROWS, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, {})
    if rows:
        terminalreporter.section("public suites")
    for (suite, filesystem), counted in sorted(rows.items()):
        terminalreporter.write_line(f"{suite:<12} {filesystem:<12} {counted}")
