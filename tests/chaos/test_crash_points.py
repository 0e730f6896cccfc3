"""A worker that ends, stops or fails at any step of a copy: what was saved gets where it belongs all the same."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import failpoints
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.ram.layout import Layout
from tests.harness.checker import broken_in_ram
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

_JOB = "default/job/0"
_OF_THE_SENDER = (
    "snapshot.walked",
    "snapshot.committed",
    "snapshot.recorded",
    "copy.begun",
    "copy.moving",
    "copy.stored",
    "copy.committed",
    "retention.dropped",
    "retention.collecting",
)
_OF_THE_RECEIVER = (
    "content.allocated",
    "content.hashed",
    "content.named",
    "listing.written",
    "listing.published",
)
_MOST_TELLING = ("snapshot.committed", "copy.moving", "listing.published")
# What nodes rightly say when a worker ends; a defect comes with a traceback, or under its own name.
_SAID = r"(?!volume\.task_failed)[a-z_]+\.[a-z_.]+"


def test_every_marked_place_of_a_copy_is_tried() -> None:
    others = ("restore", "bucket", "replicator", "restart", "in_place", "coordinator")
    of_a_copy = {name for name in failpoints.NAMES if name.split(".")[0] not in others}
    assert {*_OF_THE_SENDER, *_OF_THE_RECEIVER} == of_a_copy


@pytest.mark.timeout(120)
async def test_a_worker_that_is_killed_in_a_copy_loses_nothing_and_leaves_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    await _crash_at(make_cluster, expected_logs, _MOST_TELLING, ["kill"])


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_a_worker_that_ends_stops_or_fails_at_any_step_of_a_copy_loses_nothing_and_leaves_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    await _crash_at(make_cluster, expected_logs, (*_OF_THE_SENDER, *_OF_THE_RECEIVER), sorted(failpoints.ACTIONS))


async def _crash_at(
    make_cluster: Clusters, expected_logs: ExpectedLogs, names: Collection[str], actions: Collection[str]
) -> None:
    expected_logs.allow(_SAID)
    cluster = await make_cluster("a", "b", bucket=False, start=False, settle=0.05)
    for node in cluster:
        node.family.environment[failpoints.VARIABLE] = str(node.directory / "failpoint")
    await cluster.start()
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(_JOB, mount)
    saved: dict[str, bytes] = {}
    for action in actions:
        for name in names:
            node = cluster["a" if name in _OF_THE_SENDER else "b"]
            await _crash(cluster, node, name, action, mount, saved)
    await cluster["a"].lose_ram()
    tree = mount.parent / "restored"
    await cluster["b"].restore(_JOB, tree)
    assert {path.name: path.read_bytes() for path in tree.iterdir()} == saved
    await cluster["a"].start()


async def _crash(
    cluster: LocalCluster, node: LocalNode, name: str, action: str, mount: Path, saved: dict[str, bytes]
) -> None:
    armed = Path(node.family.environment[failpoints.VARIABLE])
    failpoints.arm(str(armed), name, action)
    file = f"{name}-{action}"
    saved[file] = os.urandom(300_000)
    await trio.to_thread.run_sync((mount / file).write_bytes, saved[file])
    await until(partial(_has_fired, armed))
    if action == "stop":
        node.family.thaw()
    await until(partial(_is_on_a_peer, cluster["a"]), 60)
    for one in cluster:
        layout = Layout(str(one.ram_path))
        await until(partial(_is_clean, layout))
        assert broken_in_ram(layout, one.name) == [], file


async def _has_fired(armed: Path) -> bool:
    return not armed.exists()


async def _is_on_a_peer(node: LocalNode) -> bool:
    try:
        await node.wait(_JOB, "peer", 5)
    except FuseTierError:  # its worker is starting, or its peer's
        return False
    return True


async def _is_clean(layout: Layout) -> bool:
    """No part of a blob is left once what was under way has ended, one way or the other."""
    return not os.listdir(layout.incoming)
