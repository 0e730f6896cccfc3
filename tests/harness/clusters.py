"""Clusters for tests: made on demand, watched, checked and taken down with the test."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fuse_tier.localcluster import LocalCluster, local_cluster
from tests.harness.checker import check_all_listed_restores
from tests.harness.logs import ExpectedLogs


class Clusters:
    """What the fixture ``make_cluster`` gives: call it for a cluster."""

    def __init__(self, stack: AsyncExitStack, directory: Path, expected_logs: ExpectedLogs) -> None:
        self._stack = stack
        self._directory = directory
        self.expected_logs = expected_logs
        self._made: list[LocalCluster] = []
        self.check = True
        """Whether all that is listed must restore in the end; False for tests that leave damage behind."""

    async def __call__(self, *nodes: str, **settings: Any) -> LocalCluster:
        """A running cluster. ``settings`` are those of ``local_cluster``."""
        directory = self._directory / str(len(self._made))
        self.expected_logs.watch(directory)
        settings = {"ram_size": "256MiB", **settings}
        cluster = await self._stack.enter_async_context(local_cluster(directory, nodes or ("a", "b"), **settings))
        self._made.append(cluster)
        return cluster

    async def check_all(self) -> None:
        """The checker, on every cluster made."""
        for cluster in self._made:
            await check_all_listed_restores(cluster)
