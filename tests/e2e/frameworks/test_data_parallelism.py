"""A job whose nodes hold the same state in groups, on real nodes: what one has lost everywhere, its partner gives."""

from __future__ import annotations

import re

import pytest
import trio

from fuse_tier.localcluster import LocalCluster, LocalNode
from tests.e2e.frameworks.client import Client, Failed, order
from tests.e2e.frameworks.test_file_protocol import JOB, is_shown, mount_rank
from tests.e2e.jobs import A_NODE_DIED
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SHARED = {"assume_data_parallelism": 2, "backup_interval_minutes": None, "backup_interval_steps": 20}


def content(rank: int, step: int) -> bytes:
    """Partners hold the same state; the bytes of their files are not the same."""
    return b"of rank %d, step %d\n" % (rank, step) * 1000


async def save(nodes: list[LocalNode], clients: list[Client], step: int) -> None:
    for rank, client in enumerate(clients):
        client.save(step, content(rank, step))
        await nodes[rank].wait(f"{JOB}/{rank}", "peer", 60)


async def mount_all(nodes: list[LocalNode], cluster: LocalCluster) -> list[Client]:
    return [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]


async def test_a_rank_that_is_lost_with_its_copies_goes_on_from_its_partners_data(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", start=False, settle="50ms")
    for name, zone in (("a", "one"), ("b", "one"), ("c", "two")):  # so that all copies are on c
        cluster[name].config["domain"] = {"zone": zone}
    await cluster.start()
    nodes = [cluster["a"], cluster["b"]]
    clients = await mount_all(nodes, cluster)
    for rank, client in enumerate(clients):
        assert await client.start(order(rank, 2, **SHARED)) is None
    for step in (10, 20):
        await save(nodes, clients, step)
    await until(lambda: is_shown(nodes[0], 20, "bucket"))
    await save(nodes, clients, 30)
    assert {tier for one in await nodes[0].list(f"{JOB}/0") for tier in one.tiers} == {"ram", "peer"}

    # Rank 1 is lost, and so are all copies: of step 30 it has nothing anywhere.
    expected_logs.allow(*A_NODE_DIED, r"restart\.set_aside")
    await nodes[0].unmount(clients[0].mount)
    for name in ("b", "c"):
        await cluster[name].lose_ram()
    for name in ("b", "c"):
        await cluster[name].start()
    plan = await nodes[0].cli("plan", "--job", JOB)
    assert re.search(rf"{JOB}/0@[0-9]+, for {JOB}/1 +another node \(1\) +peer a", plan.stdout), plan.stdout
    clients = await mount_all(nodes, cluster)
    assert clients[1].steps() == []
    async with trio.open_nursery() as nursery:
        for rank, client in enumerate(clients):
            nursery.start_soon(client.order, order(rank, 2, **SHARED))
    for client in clients:
        assert await client.take() == 30
        assert client.prerestore() == {"restore-step": 30}
        assert client.steps() == [30]
        assert (client.mount / "30/state/weights").read_bytes() == content(0, 30)

    # Both save on; of the bucket, where one group's data is, all can go on, too.
    await save(nodes, clients, 40)
    await nodes[1].wait(f"{JOB}/1", "bucket", 60)
    await until(lambda: is_shown(nodes[0], 40, "bucket"))
    await cluster.lose_all_ram()
    for node in cluster:
        await node.start()
    expected_logs.allow(r"replicator\.failed")
    clients = [await mount_rank(nodes[0], cluster, 0, 2)]
    with pytest.raises(Failed, match="assume-data-parallelism: of step 40 this rank has nothing"):
        await clients[0].start(order(0, 2, **SHARED | {"assume_data_parallelism": 1}))
    for rank in (0, 1):
        if rank:
            clients.append(await mount_rank(nodes[rank], cluster, rank, 2))
        assert await clients[rank].start(order(rank, 2, **SHARED)) == 40
        assert clients[rank].prerestore()["restore-step"] == 40
        assert (clients[rank].mount / "40/state/weights").read_bytes() == content(1, 40)
    assert "restore-backup" in clients[0].prerestore()
