"""What a tmpfs passes in public suites, the mount passes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fs.callers import let_everybody_in
from tests.fs.mounted import Mounted
from tests.public.conftest import Table
from tests.public.suites import SUITES, Suite, regressions

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("make", SUITES, ids=lambda suite: suite.name)
def test_the_mount_passes_what_a_tmpfs_passes(
    make: type[Suite], mounted: Mounted, memory_path: Path, tmp_path: Path, table: Table,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    suite = make()
    if suite.find() is None:
        pytest.skip(f"needs {suite.program}: make test-tools")
    reference, scratch = memory_path / "reference", tmp_path / "scratch"
    reference.mkdir()
    scratch.mkdir()
    mode = request.node.callspec.params.get("mounted", "mount")
    before = os.umask(0o022)
    try:
        let_everybody_in(reference)
        let_everybody_in(mounted.path)
        theirs = suite.run(reference, scratch)
        ours = suite.run(mounted.path, scratch)
    finally:
        os.umask(before)
    table.add(suite.name, "tmpfs", theirs)
    table.add(suite.name, {"on": "passthrough", "off": "plain"}.get(mode, mode), ours)
    lost = {case: found for case, found in regressions(ours, theirs).items() if case not in suite.exceptions}
    shown = "\n".join(f"{case}: {found.verdict.value}: {found.said:.500}" for case, found in lost.items())
    assert not lost, f"{suite.name}: {len(lost)} cases that a tmpfs passes\n{shown}"
