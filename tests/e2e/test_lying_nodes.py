"""Nodes that say they have what they have not, or have otherwise: real ones, of a job of several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_tier.errors import NotFound
from fuse_tier.localcluster import LocalCluster, LocalNode
from tests.e2e.jobs import A_NODE_DIED, DAMAGE, blobs_in, damage, mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

JOB = "default/llama"


def content(rank: int, step: int) -> bytes:
    return b"rank %d, step %d\n" % (rank, step) * 1000


def save(mount: Path, rank: int, step: int) -> None:
    """Steps before the last one go, as with jobs that keep one."""
    for old in list(mount.iterdir()):
        (old / "weights").unlink()
        old.rmdir()
    temporary = mount / f"{step}.tmp"
    temporary.mkdir()
    (temporary / "weights").write_bytes(content(rank, step))
    temporary.rename(mount / str(step))


def blob_of(node: LocalNode, rank: int, step: int) -> Path:
    (found,) = (path for path in blobs_in(node) if path.read_bytes() == content(rank, step))
    return found


async def has(node: LocalNode, rank: int, step: int) -> bool:
    return any(path.read_bytes() == content(rank, step) for path in blobs_in(node))


async def mount_rank(node: LocalNode, cluster: LocalCluster, rank: int, **request: object) -> Path:
    mount = cluster.mountpoint(f"{node.name}-rank{rank}")
    await mount_when_free(node, mount, f"{JOB}/{rank}", world_size=2, **request)
    return mount


async def test_what_nodes_say_they_hold_is_believed_until_its_bytes_are_hashed_and_then_not_again(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", bucket=False, settle="50ms", replicas=2, keep={"ram": 3})
    nodes = [cluster["a"], cluster["b"]]
    mounts = [await mount_rank(node, cluster, rank) for rank, node in enumerate(nodes)]
    for step in (10, 20):
        for rank, (node, mount) in enumerate(zip(nodes, mounts, strict=True)):
            save(mount, rank, step)
            await node.wait(f"{JOB}/{rank}", "peer", 60)

    # Behind their nodes' backs one of rank 1's copies gets other bytes, and one is lost: both are reported as before.
    expected_logs.allow(*A_NODE_DIED, *DAMAGE, r"restart\..*")
    make_cluster.check = False  # what is not there is still listed where nobody has asked for it
    for name in ("a", "c"):
        await until(lambda name=name: has(cluster[name], 1, 20))  # type: ignore[misc]
    damage(blob_of(cluster["a"], 1, 20))
    blob_of(cluster["c"], 1, 20).unlink()
    await cluster["b"].lose_ram()
    await nodes[0].unmount(mounts[0])
    await cluster["b"].start()

    mounts[1] = await mount_rank(nodes[1], cluster, 1)
    mounts[0] = await mount_rank(nodes[0], cluster, 0)
    for rank, mount in enumerate(mounts):
        assert [path.name for path in mount.iterdir()] == ["10"]
        assert (mount / "10/weights").read_bytes() == content(rank, 10)
    told = [line for line in nodes[1].log_path.read_text().splitlines() if "restart.part_damaged" in line]
    assert told, "the log says that the part was damaged"

    # The nodes' word for that snapshot does not count any more, whoever asks.
    for rank, mount in enumerate(mounts):
        await nodes[rank].unmount(mount)
    with pytest.raises(NotFound, match=r"step 20 of default/llama is not complete: those that are: 10$"):
        await mount_rank(nodes[0], cluster, 0, step=20)
    for rank in (0, 1):
        mount = await mount_rank(nodes[rank], cluster, rank)
        assert (mount / "10/weights").read_bytes() == content(rank, 10)
