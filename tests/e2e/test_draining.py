"""A node that is about to be taken away, by a notice or by a stop: what is only there goes to others first."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.logs import LEVEL_VARIABLE
from tests.e2e.jobs import A_NODE_DIED, JOB, checkpoint_of, layout_of, save
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.trees import Node, tree_of
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

# No snapshot is taken by itself in the time of a test, so that all that is saved is saved by draining.
_NEVER = 600.0


async def test_a_notice_has_everything_copied_and_a_stop_does_so_too(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    expected_logs.allow("node.preempted", *A_NODE_DIED)
    notice = tmp_path / "preempted"
    cluster = await make_cluster("a", "b", "c", bucket=False, start=False, settle=_NEVER)
    cluster["a"].config["preemption"] = str(notice)
    await cluster.start()
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "before").write_bytes(b"the notice")
    notice.touch()
    await until(partial(_has_copies, cluster, 1))
    assert (mount / "before").read_bytes() == b"the notice"
    notice.unlink()
    (mount / "after").write_bytes(b"the notice")
    assert await cluster["a"].stop() == 0
    await until(partial(_has_copies, cluster, 2))
    tree = tmp_path / "restored"
    await cluster["b"].restore(JOB, tree)
    assert sorted(path.name for path in tree.iterdir()) == ["after", "before"]


async def test_what_is_left_of_a_node_that_is_gone_outlives_those_that_hold_it_and_leave(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    """Nobody has mounted the volume again: one node with its copy gets a notice, and the next one is stopped."""
    expected_logs.allow("node.preempted", *A_NODE_DIED)
    cluster = await make_cluster("a", "b", "c", "d", bucket=False, start=False)
    for name in "bcd":
        cluster[name].config["preemption"] = str(tmp_path / name)
    await cluster.start()
    written = await _save_on_two_nodes(cluster["a"], cluster.mountpoint("a"))
    (first,) = _holding(cluster, "bcd")
    await until(partial(_is_known, cluster, "a"))  # else all that speaks for the copy is who has it (decision 0038)
    await cluster["a"].lose_ram()
    (tmp_path / first).touch()
    others = "bcd".replace(first, "")
    await until(partial(_is_held, cluster, others), 60)
    (second,) = _holding(cluster, others)
    await cluster[first].lose_ram()
    assert await cluster[second].stop() == 0
    last = others.replace(second, "")
    await cluster[last].restore(JOB, tmp_path / "restored")
    assert tree_of(tmp_path / "restored") == written


async def test_what_an_owner_has_that_has_died_but_is_not_known_to_have_is_brought_away_as_well(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    """Its lease still runs when the only node with its copy is stopped: a node that does not answer has nothing."""
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster("a", "b", "c", bucket=False, start=False)
    assert cluster.coordinator
    cluster.coordinator.config["lease"] = Deadline.CONTROL_CALL + Deadline.CONTROL_CONNECT  # longer than a stop takes
    await cluster.start()
    written = await _save_on_two_nodes(cluster["a"], cluster.mountpoint("a"))
    (holder,) = _holding(cluster, "bc")
    await until(partial(_is_known, cluster, "a"))  # else all that speaks for the copy is who has it (decision 0038)
    await cluster["a"].lose_ram()
    assert await cluster[holder].stop() == 0
    await cluster[holder].lose_ram()
    (left,) = _holding(cluster, "bc")
    await cluster[left].restore(JOB, tmp_path / "restored")
    assert tree_of(tmp_path / "restored") == written


async def test_the_last_node_that_holds_what_is_left_of_another_brings_it_to_the_bucket(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster("a", "b", start=False)
    bucket = cluster["a"].config.pop("bucket")  # only the other one reaches it
    await cluster.start()
    written = await _save_on_two_nodes(cluster["a"], cluster.mountpoint("a"))
    await cluster["a"].lose_ram()
    await until(partial(_is_alone, cluster["b"]))
    assert await cluster["b"].stop() == 0
    await cluster["b"].lose_ram()
    await cluster["a"].start(bucket=bucket)
    await cluster["a"].restore(JOB, tmp_path / "restored")
    assert tree_of(tmp_path / "restored") == written


async def test_a_stop_does_not_wait_for_peers_that_are_gone_longer_than_it_was_told(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("drain.ran_out", *A_NODE_DIED)
    cluster = await make_cluster("a", "b", bucket=False, settle=_NEVER, drain=0.5)
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "file").write_bytes(b"x")
    cluster["b"].family.freeze()
    assert await cluster["a"].stop() == 0
    assert _newest(cluster["a"]) > 0
    cluster["b"].family.thaw()


async def test_what_is_complete_goes_first_and_of_that_the_newest(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    """All turns are taken by copies that do not get on; meanwhile three jobs save, and one begins again."""
    expected_logs.allow("node.preempted")
    notice = tmp_path / "preempted"
    cluster = await make_cluster("a", "b", bucket=False, start=False, settle=_NEVER, drain=120.0)
    assert cluster.coordinator
    cluster.coordinator.config["lease"] = Deadline.BULK_STALL  # so long a node may stand still; a mount waits as long
    a, b = cluster["a"], cluster["b"]
    a.config |= {"preemption": str(notice), "limits": {"bulk": "10Mbps"}}
    a.family.environment[LEVEL_VARIABLE] = "debug"
    await cluster.start()
    mounts = {name: cluster.mountpoint(name) for name in ("ahead", "beside", "first", "second", "third")}
    for name, mount in mounts.items():
        await a.mount(_volume(name), mount)
    for name in ("ahead", "beside"):
        (mounts[name] / "weights").write_bytes(os.urandom(6 << 20))
    for name in ("first", "second", "third"):
        (mounts[name] / "whole").write_bytes(os.urandom(100))
    async with trio.open_nursery() as nursery:  # both must be under way before one of them is there
        for name in ("ahead", "beside"):
            nursery.start_soon(a.wait, _volume(name), "ram", 30)
    await until(partial(_is_receiving, b, 2))
    b.family.freeze()
    for name in ("first", "second", "third"):
        await a.wait(_volume(name), "ram", 30)
    (mounts["first"] / "half").write_bytes(os.urandom(100))
    notice.touch()
    await until(partial(_has_said, a, "node.preempted"))
    b.family.thaw()
    await until(partial(_has_said, a, "node.drained"), 150)
    begun = [Path(line["snapshot"].partition("@")[0]).name for line in _said(a, "copy.begun")]
    assert {*begun[:2]} == {"ahead", "beside"}
    assert begun[2:] == ["third", "second", "first", "first"]


async def _save_on_two_nodes(node: LocalNode, mount: Path) -> dict[str, Node]:
    await node.mount(JOB, mount)
    save(checkpoint_of(1), mount)
    await node.wait(JOB, "peer", 60)
    return tree_of(mount)


def _holding(cluster: LocalCluster, names: str) -> list[str]:
    return [name for name in names if _newest(cluster[name])]


async def _is_held(cluster: LocalCluster, names: str) -> bool:
    return bool(_holding(cluster, names))


async def _is_known(cluster: LocalCluster, holder: str) -> bool:
    """Whether the coordinator has heard that a node has a snapshot."""
    assert cluster.coordinator
    volumes = (await cluster.coordinator.picture()).volumes
    return any(holder == one.member.node for volume in volumes for one in volume.holders)


async def _is_alone(node: LocalNode) -> bool:
    """Whether it has heard that all others are gone."""
    return not any(tier["tier"] == "peer" for tier in (await node.status())["tiers"])


def _volume(name: str) -> str:
    return f"default/job/{name}"


def _said(node: LocalNode, event: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def _has_said(node: LocalNode, event: str) -> bool:
    return bool(_said(node, event))


async def _is_receiving(node: LocalNode, files: int) -> bool:
    return len(os.listdir(layout_of(node).incoming)) >= files


async def _has_copies(cluster: LocalCluster, number: int) -> bool:
    return any(_newest(cluster[name]) >= number for name in "bc")


def _newest(node: LocalNode) -> int:
    return max((snapshot.number for snapshot in listed(layout_of(node))), default=0)
