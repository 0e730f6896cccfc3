"""Small scenarios come out on the mount as they do on a plain tmpfs directory, in values, errno and attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.fs.callers import let_everybody_in
from tests.fs.mounted import Mounted
from tests.fs.scenarios import SCENARIOS, run

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def reference(memory_path: Path) -> Iterator[Path]:
    path = memory_path / "reference"
    path.mkdir()
    before = os.umask(0o022)
    try:
        yield path
    finally:
        os.umask(before)


@pytest.mark.parametrize("theme", SCENARIOS)
def test_scenarios_come_out_as_on_a_tmpfs(mounted: Mounted, reference: Path, theme: str) -> None:
    let_everybody_in(mounted.path)
    let_everybody_in(reference)
    differences = []
    for scenario in SCENARIOS[theme]:
        ours, theirs = (run(scenario, root / scenario.__name__) for root in (mounted.path, reference))
        differences += [
            f"{scenario.__name__}[{step}]: {mine!r:.600}, on a tmpfs {other!r:.600}"
            for step, (mine, other) in enumerate(zip_longest(ours, theirs, fillvalue="nothing"))
            if mine != other
        ]
    if differences:
        shown = "\n".join(differences[:40])
        pytest.fail(f"{len(differences)} outcomes differ:\n{shown}", pytrace=False)
