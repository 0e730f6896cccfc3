"""A link that goes one way only, between two nodes that all others reach: what needs it goes another way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import TierUnavailable
from fuse_tier.localcluster import LocalNode
from tests.e2e.jobs import A_NODE_DIED, JOB, layout_of, mount_when_free
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.network import Network, network
from tests.harness.trees import Node, tree_of
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.namespaces]

_FILES = 4
_FILE_BYTES = 3 << 20
_SLOWLY = "10Mbps"  # seconds for all files, in which the link can be cut


@pytest.fixture
def wires() -> Iterator[Network]:
    with network(["a", "b", "c", "d", "coordinator"]) as made:
        yield made


async def test_a_holder_that_is_alive_and_out_of_reach_is_done_without(
    wires: Network, make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    """What the job saves has as many copies as are configured, on another node, for as long as that lasts."""
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster("a", "b", "c", hosts=wires.hosts, bucket=False)
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount(JOB, mount)
    (mount / "first").write_bytes(b"before")
    await node.wait(JOB, "peer", 60)
    (holder,) = [cluster[name] for name in "bc" if listed(layout_of(cluster[name]))]
    (other,) = [cluster[name] for name in "bc" if cluster[name] is not holder]
    wires.cut_one_way(node.name, holder.name)
    for number in range(3):
        (mount / "next").write_bytes(b"%d" % number)
        await node.wait(JOB, "peer", 60)
    assert _newest(other) > _newest(holder) > 0
    wires.heal(node.name)
    (mount / "last").write_bytes(b"after")
    await until(partial(_has_what, holder, node), 90)
    await cluster.clean_up()


@pytest.mark.chaos  # as below
@pytest.mark.timeout(400)
async def test_a_mount_that_does_not_reach_who_has_the_files_gets_them_by_way_of_another_node(
    wires: Network, make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    """It is tried again and again, as kubelet does."""
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster(*"abcd", hosts=wires.hosts, bucket=False)
    saved = await _save_and_lose(cluster["a"], cluster.mountpoint("a"))
    (holder,) = [cluster[name] for name in "bcd" if listed(layout_of(cluster[name]))]
    node, _ = (cluster[name] for name in "bcd" if cluster[name] is not holder)
    wires.cut_one_way(node.name, holder.name)
    mount = cluster.mountpoint("again")
    await until(partial(_is_mounted, node, mount), 120)
    assert await trio.to_thread.run_sync(tree_of, mount / "step") == saved
    wires.heal(node.name)
    await cluster.clean_up()


@pytest.mark.chaos  # for more than a minute somebody is waited for
@pytest.mark.timeout(400)
async def test_a_restore_that_does_not_reach_who_has_the_files_gets_them_by_way_of_another_node(
    wires: Network, make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    """The holder is alive for all others. What the job saves meanwhile is copied when the files are there."""
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster(
        *"abcd", hosts=wires.hosts, bucket=False, restoreAtOnce="0", limits={"bulk": _SLOWLY}
    )
    saved = await _save_and_lose(cluster["a"], cluster.mountpoint("a"))
    (holder,) = [cluster[name] for name in "bcd" if listed(layout_of(cluster[name]))]
    node, third = (cluster[name] for name in "bcd" if cluster[name] is not holder)
    mount = cluster.mountpoint("again")
    await mount_when_free(node, mount)
    wires.cut_one_way(node.name, holder.name)
    assert not listed(layout_of(node)), "all was there before the link was cut"
    (mount / "saved").write_bytes(b"meanwhile")
    await node.wait(JOB, "peer", 300)
    assert await trio.to_thread.run_sync(tree_of, mount / "step") == saved
    assert _newest(third) > _newest(holder) > 0
    wires.heal(node.name)
    await cluster.clean_up()


async def _save_and_lose(node: LocalNode, mount: Path) -> dict[str, Node]:
    await node.mount(JOB, mount)
    (mount / "step").mkdir()
    for number in range(_FILES):
        (mount / "step" / str(number)).write_bytes(os.urandom(_FILE_BYTES))
    await node.wait(JOB, "peer", 60)
    tree = await trio.to_thread.run_sync(tree_of, mount / "step")
    await node.lose_ram()
    return tree


async def _is_mounted(node: LocalNode, mount: Path) -> bool:
    try:
        await mount_when_free(node, mount)
    except TierUnavailable:
        return False
    return True


async def _has_what(holder: LocalNode, owner: LocalNode) -> bool:
    return _newest(holder) == _newest(owner)


def _newest(node: LocalNode) -> int:
    return max((snapshot.number for snapshot in listed(layout_of(node))), default=0)
