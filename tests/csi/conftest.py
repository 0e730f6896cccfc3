"""A node of ours with the plugin's process, and who stands in for kubelet."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from csi.local.kubelet import Kubelet
from csi.services import DRIVER_NAME
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.localcluster.processes import Family
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

if TYPE_CHECKING:
    from tests.harness.clusters import Clusters


@dataclass
class Plugin:
    """The plugin's process beside a node, and the kubelet that calls it."""

    node: LocalNode
    kubelet: Kubelet
    family: Family

    async def start(self) -> None:
        """Returns when it is ready."""
        self.family.start()
        await until(self.kubelet.is_ready)

    async def kill(self) -> None:
        """At once, as a crash does."""
        await self.family.kill()

    def log(self) -> str:
        """What it wrote."""
        return self.family.log.read_text()


@asynccontextmanager
async def plugin_beside(
    node: LocalNode, directory: Path, expected_logs: ExpectedLogs, *arguments: str
) -> AsyncIterator[Plugin]:
    """A plugin for a node."""
    with tempfile.TemporaryDirectory(prefix="ft-csi-") as place:
        kubelet = Kubelet(Path(place) / "kubelet", f"{place}/kubelet/plugins/{DRIVER_NAME}/csi.sock")
        log = directory / "plugin.log"
        expected_logs.watch(log)
        command = [
            "-m", "csi.cli", "--config", str(node.config_path), "--endpoint", f"unix://{kubelet.socket}",
            "--kubelet", str(kubelet.directory), *arguments,
        ]  # fmt: skip
        plugin = Plugin(node, kubelet, Family("plugin", command, log))
        try:
            await plugin.start()
            yield plugin
        finally:
            await plugin.kill()
            kubelet.clean_up()


@pytest.fixture
async def cluster(make_cluster: Clusters) -> LocalCluster:
    """One node that copies to nobody."""
    return await make_cluster("a", bucket=False, tls=False, coordinator=False)


@pytest.fixture
async def plugin(cluster: LocalCluster, tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Plugin]:
    """The plugin beside that node."""
    async with plugin_beside(cluster["a"], tmp_path, expected_logs) as plugin:
        yield plugin


@pytest.fixture
def kubelet(plugin: Plugin) -> Kubelet:
    """Who calls it."""
    return plugin.kubelet
