"""A data-parallel job on several nodes: what all of its ranks have goes to the bucket, and comes from there, once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.e2e.jobs import A_NODE_DIED, mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.trees import tree_of
from tests.tiers.faulty_http import faulty

pytestmark = [pytest.mark.fuse, pytest.mark.root]

JOB = "default/llama"
RANKS = 3
LARGE = [10 << 20, *[2 << 20] * 4]  # bytes; one goes in parts where it would be on its way alone
SMALL = 300  # files of 4 KiB, which go in packs
OWN = 300_000  # bytes that no other rank has
ASIDE = 1_000_000  # bytes: manifests, claims, questions, and packs that are too small to be claimed


def save(mount: Path, rank: int, seed: int) -> int:
    """Gives the bytes that all ranks have in common."""
    same, own = random.Random(seed), random.Random(seed + 1 + rank)
    place = mount / "100"
    place.mkdir()
    common = 0
    for number, size in enumerate(LARGE + [4 << 10] * SMALL):
        common += (place / f"{number}").write_bytes(same.randbytes(size))
    (place / "rank").write_bytes(own.randbytes(OWN))
    return common


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_what_several_nodes_have_is_uploaded_once_and_read_back_once_in_the_cluster(
    make_cluster: Clusters, stack: ExitStack, rng: random.Random, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(
        *A_NODE_DIED, r"snapshot\.postponed"
    )  # the ranks write for longer than a snapshot holds them back
    cluster = await make_cluster("a", "b", "c", start=False, replicas=0, settle="5s")  # seen when all is written
    assert cluster.bucket is not None
    proxies = [stack.enter_context(faulty(cluster.bucket.emulator.endpoint)) for _ in cluster]
    for node, proxy in zip(cluster, proxies, strict=True):
        node.config["bucket"] = {"url": cluster.bucket.url, "endpoint": proxy.endpoint}
    await cluster.start()
    seed, common = rng.getrandbits(32), 0
    mounts = [cluster.mountpoint(node.name) for node in cluster]
    for rank, (node, mount) in enumerate(zip(cluster, mounts, strict=True)):
        await node.mount(f"{JOB}/{rank}", mount)

    async def save_one(rank: int) -> None:
        nonlocal common
        common = await trio.to_thread.run_sync(save, mounts[rank], rank, seed)

    async def bring(rank: int) -> None:
        await list(cluster)[rank].wait(f"{JOB}/{rank}", "bucket", 60)

    for work in (save_one, bring):
        async with trio.open_nursery() as nursery:
            for rank in range(RANKS):
                nursery.start_soon(work, rank)
    sent = [proxy.sent for proxy in proxies]
    print("bytes that each node sent:", sent, "of", common)  # noqa: T201
    assert common <= sum(sent) <= common + RANKS * OWN + ASIDE
    assert all(count >= OWN for count in sent)

    trees = [await trio.to_thread.run_sync(tree_of, mount) for mount in mounts]
    await cluster.lose_all_ram()
    async with trio.open_nursery() as nursery:
        for node in cluster:
            nursery.start_soon(node.start)
    before = [proxy.received for proxy in proxies]

    async def mount_again(rank: int) -> None:
        await mount_when_free(list(cluster)[rank], mounts[rank], f"{JOB}/{rank}")

    async with trio.open_nursery() as nursery:
        for rank in range(RANKS):
            nursery.start_soon(mount_again, rank)
    for mount, tree in zip(mounts, trees, strict=True):
        assert await trio.to_thread.run_sync(tree_of, mount) == tree
    received = [proxy.received - already for proxy, already in zip(proxies, before, strict=True)]
    print("bytes that each node received:", received)  # noqa: T201
    # A read that is slow is overtaken by a second one: then a part of it comes twice, but never all of it.
    assert common <= sum(received) <= 1.5 * common + RANKS * OWN + ASIDE
