"""A node's processes die one by one, and come back: its jobs go on, and so do the copies."""

from __future__ import annotations

import os
import signal

import pytest

from fuse_tier.errors import IdentityBusy
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.localcluster.node import WORKER
from tests.e2e.jobs import JOB, checkpoint_of, save
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.trees import tree_of
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

# What the others rightly say of a node whose worker is away for a moment, or longer where there is much to do.
AWAY = (
    *(r"membership\..*", "coordinator.node_gone", r"copy\..*", r"bulk\..*"),
    *("list.place_silent", "worker.ended", r"volume\.daemon_lost"),
)


@pytest.fixture
async def cluster(make_cluster: Clusters, expected_logs: ExpectedLogs) -> LocalCluster:
    expected_logs.allow(*AWAY)
    return await make_cluster("a", "b")


async def newest(node: LocalNode) -> int:
    (volume,) = (await node.status())["volumes"]
    assert volume["mounted"]
    return int(volume["newest"]["number"])


async def test_a_node_that_was_killed_goes_on_with_what_is_mounted(cluster: LocalCluster) -> None:
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount(JOB, mount)
    save(checkpoint_of(1), mount)
    await node.wait(JOB, "peer", 60)
    before = await newest(node)
    with (mount / "log").open("ab", buffering=0) as log:
        await node.kill_supervisor()
        log.write(b"a line\n")
        save(checkpoint_of(2), mount)
        written = tree_of(mount)
        await node.start()
        await node.wait(JOB, "peer", 60)
    assert await newest(node) > before
    assert (await node.status())["volumes"][0]["restarts"] == 0, "the mount's daemon has noticed nothing"
    with pytest.raises(IdentityBusy, match=r"\ba\b"):
        await cluster["b"].mount(JOB, cluster.mountpoint("b"))
    await node.unmount(mount)
    await cluster["b"].mount(JOB, cluster.mountpoint("b"))
    assert tree_of(cluster.mountpoint("b")) == written


async def test_copies_go_on_after_the_death_of_a_worker(cluster: LocalCluster) -> None:
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount(JOB, mount)
    (worker,) = node.family.running(WORKER)
    os.kill(worker, signal.SIGKILL)
    saved = checkpoint_of(1)
    save(saved, mount)

    async def is_back() -> bool:
        return bool(node.family.running(WORKER) - {worker}) and os.path.exists(node.socket)

    await until(is_back)
    await _answered(node)
    await node.wait(JOB, "peer", 60)
    assert await newest(node)


async def _answered(node: LocalNode) -> None:
    async def does() -> bool:
        return (await node.cli("status")).returncode == 0

    await until(does)
