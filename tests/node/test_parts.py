"""A node in parts, which come and go in any order."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import yaml

from fuse_tier.deadlines import Deadline
from fuse_tier.localcluster import LocalNode
from fuse_tier.localcluster.processes import Family
from fuse_tier.mount.table import mount_at
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


class Parts:
    """Supervisor and worker of one node, each a process that a test starts."""

    def __init__(self, node: LocalNode, logs: Path) -> None:
        self.node = node
        node.config_path.write_text(yaml.safe_dump(node.config))
        command = ["-m", "fuse_tier.cli", "node", "--config", str(node.config_path), "--part"]
        self.supervisor, self.worker = [
            Family(part, [*command, part], logs / f"{part}.log") for part in ("supervisor", "worker")
        ]


@pytest.fixture
async def parts(make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Parts]:
    expected_logs.watch(tmp_path)
    cluster = await make_cluster("a", bucket=False, tls=False, coordinator=False, start=False)
    parts = Parts(cluster["a"], tmp_path)
    yield parts
    for part in (parts.worker, parts.supervisor):
        await part.kill()


async def asks_for_its_supervisor(node: LocalNode) -> None:
    """Returns when somebody has, who is then left without an answer."""
    path = f"{node.socket}.supervisor"
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        (await listener.accept())[0].close()
    Path(path).unlink()


async def test_a_worker_that_comes_first_touches_nothing_until_its_supervisor_is_there(parts: Parts) -> None:
    worker, ram = parts.worker, parts.node.ram_path
    worker.start()
    await asks_for_its_supervisor(parts.node)
    assert mount_at(str(ram)) is None
    assert not any(ram.glob("*"))
    assert await worker.terminate(Deadline.HURRIED_STOP + Deadline.THREAD_SHUTDOWN) == 0
    worker.start()
    await asks_for_its_supervisor(parts.node)
    parts.supervisor.start()

    async def is_ready() -> bool:
        return "is ready" in worker.output()

    await until(is_ready)
    assert mount_at(str(ram)) is not None
