"""Two jobs on a node, and too little RAM: who uses up its share harms no other, and a full tier is told as such."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import grpc
import pytest

from csi.local.kubelet import Refused
from tests.csi.conftest import Plugin, plugin_beside
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

TIER, SHARE = 32 << 20, 12 << 20


@pytest.fixture
async def plugin(make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Plugin]:
    """Of a node whose volumes may have a part of its RAM each."""
    cluster = await make_cluster("a", ram_size=str(TIER), bucket=False, tls=False, coordinator=False, start=False)
    node = cluster["a"]
    node.config["ram"]["share"] = SHARE
    await node.start()
    async with plugin_beside(node, tmp_path, expected_logs) as plugin:
        yield plugin


def fill(path: Path, size: int = TIER) -> int:
    """Writes a new file; gives how much of it there was room for."""
    total = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while total < size:
                total += file.write(bytes(min(size - total, 1 << 18)))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return total


async def test_a_job_that_uses_up_its_share_leaves_the_others_theirs_until_the_tier_itself_is_full(
    plugin: Plugin, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"room\..*", r"snapshot\..*", "seal.failed", r"eviction\..*", "volume.unmounted")
    kubelet = plugin.kubelet
    greedy, modest, third = [await kubelet.start(name) for name in ("greedy", "modest", "third")]
    fill(greedy.target / "a", SHARE)
    assert fill(greedy.target / "b") <= 64 << 10
    room = os.statvfs(greedy.target)
    assert (room.f_blocks * room.f_frsize, room.f_bavail) == (SHARE, 0)
    stats = await kubelet.stats(greedy)
    of_bytes = stats.usage[0]
    assert (of_bytes.total, of_bytes.available) == (SHARE, 0)
    assert stats.volume_condition.abnormal
    assert "used up its share" in stats.volume_condition.message
    assert fill(modest.target / "a", SHARE // 2) == SHARE // 2
    stats = await kubelet.stats(modest)
    assert (stats.usage[0].total, stats.volume_condition.abnormal) == (SHARE, False)
    fill(modest.target / "b", SHARE // 2)
    fill(third.target / "a", SHARE)
    (third.target / "more").touch()

    async def is_told() -> bool:
        fill(third.target / "more", SHARE)
        condition = (await kubelet.stats(modest)).volume_condition
        return condition.abnormal and "full" in condition.message

    await until(is_told)
    late = kubelet.stage("late")
    refusals: list[Refused] = []
    numbers = count()

    async def is_refused() -> bool:
        # Superseded content may have been given up meanwhile, which makes room; another file supersedes nothing.
        fill(third.target / f"more-{next(numbers)}", SHARE)
        try:
            await kubelet.publish(late)
        except Refused as refusal:
            refusals.append(refusal)
            return True
        await kubelet.unpublish(late)
        return False

    await until(is_refused)
    (refusal,) = refusals
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the RAM tier has no room left" in refusal.message
    (greedy.target / "a").unlink()

    async def there_is_room() -> bool:
        try:
            await kubelet.publish(late)
        except Refused:
            return False
        return True

    await until(there_is_room)
    for pod in (late, greedy, modest, third):
        await kubelet.end(pod)
