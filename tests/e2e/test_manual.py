"""The manual works, with images that are not built: tests/images has the same with images that are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.manual import follow_the_manual, running_site
from tests.harness.checkouts import give_recorder
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.kube


async def test_the_manual_works_command_by_command(tmp_path: Path, expected_logs: ExpectedLogs) -> None:
    # The manual installs the controller before there are configurations, and deletes the namespace while it runs.
    expected_logs.allow("watch.refused", "election.failed")
    expected_logs.watch(tmp_path / "own")
    async with running_site(tmp_path) as site:
        site.shell.variables["CONTAINER_TOOL"] = give_recorder(site.shell.directory)
        await follow_the_manual(site, "registry.example/project")
