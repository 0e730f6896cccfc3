"""A restore that is mounted at once: names first, then what is opened, and the rest behind."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import failpoints
from fuse_tier.bench.nodes import sent_bytes
from fuse_tier.errors import MountError, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.ram.arrival import coming_files
from fuse_tier.ram.remote import lost_files
from tests.e2e.jobs import A_NODE_DIED, DAMAGE, JOB, blobs_in, damage, layout_of, mount_when_free
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.trees import tree_of
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

_FILES = 80
_WORKER_DIED = (r"worker\.ended", r"restore\..*", r"volume\.task_failed", r"bulk\..*", r"snapshot\.postponed")


async def _lose_what_was_saved(cluster: LocalCluster) -> dict[str, object]:
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "step").mkdir()
    for number in range(_FILES):
        content = os.urandom(100_000 + number) if number % 7 else b"all the same" * 999
        (mount / "step" / f"{number:03}").write_bytes(content)
    (mount / "empty").touch()
    os.link(mount / "step" / "001", mount / "another name")
    (mount / "link").symlink_to("step/002")
    await cluster["a"].wait(JOB, "peer", 60)
    tree: dict[str, object] = dict(await trio.to_thread.run_sync(tree_of, mount))
    await cluster["a"].lose_ram()
    return tree


def _without(cluster: LocalCluster) -> LocalNode:
    return next(cluster[name] for name in "bcd" if not listed(layout_of(cluster[name])))


async def test_a_large_restore_is_mounted_at_once_and_all_comes_behind_it(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster("a", "b", "c", "d", bucket=False, replicas=2, restoreAtOnce="0")
    saved = await _lose_what_was_saved(cluster)
    node, mount = _without(cluster), cluster.mountpoint("again")
    await mount_when_free(node, mount)
    assert sorted(os.listdir(mount / "step")) == [f"{number:03}" for number in range(_FILES)]
    (mount / "new").write_bytes(b"while it comes")
    (mount / "new").unlink()
    assert await trio.to_thread.run_sync(tree_of, mount) == saved
    await node.wait(JOB, "ram", 60)
    assert await _lists_it(node)
    await node.wait(JOB, "peer", 60)
    assert await trio.to_thread.run_sync(tree_of, mount) == saved


async def test_what_is_opened_while_it_comes_over_a_slow_link_is_sent_once(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED)
    cluster = await make_cluster("a", "b", bucket=False, replicas=1, restoreAtOnce="0")
    node, holder = cluster["a"], cluster["b"]
    contents = [os.urandom(1 << 20) for _ in range(12)]
    mount, again = cluster.mountpoint("a"), cluster.mountpoint("again")
    await node.mount(JOB, mount)
    for number, content in enumerate(contents):
        (mount / f"{number:02}").write_bytes(content)
    await node.wait(JOB, "peer", 60)
    await node.lose_ram()
    node.config["limits"] = {"bulk": "100Mbps"}  # a second for all
    await node.start()
    await mount_when_free(node, again)
    opened: list[bytes] = []

    async def open_it(number: int) -> None:
        path = again / f"{number:02}"
        opened.append(await trio.to_thread.run_sync(path.read_bytes))

    async with trio.open_nursery() as nursery:
        for number in (11, 5, 9):
            nursery.start_soon(open_it, number)
    assert sorted(opened) == sorted(contents[number] for number in (11, 5, 9))
    await node.wait(JOB, "ram", 60)
    assert await trio.to_thread.run_sync(sent_bytes, holder) == sum(map(len, contents))


async def test_jobs_that_read_the_same_at_once_on_several_nodes_have_the_source_send_it_about_once(
    make_cluster: Clusters,
) -> None:
    """And nobody gets anything twice, whoever gives it."""
    receivers = ["b", "c", "d"]
    slow = {"bulk": "200Mbps"}  # a second and a half for all
    cluster = await make_cluster("a", *receivers, bucket=False, replicas=0, restoreAtOnce="0", limits=slow)
    contents = {f"{number:02}": os.urandom(1 << 20) for number in range(40)}
    for name in receivers:
        mount = cluster.mountpoint(name)
        await cluster["a"].mount(f"default/rank/{name}", mount)
        for file, content in contents.items():
            (mount / file).write_bytes(content)
        await cluster["a"].unmount(mount)

    async def restore(name: str) -> None:
        again = cluster.mountpoint(f"{name}-again")
        await cluster[name].mount(f"default/rank/{name}", again)
        for file in sorted(contents, key=lambda file: hash_bytes(f"{name} {file}".encode()).digest):
            assert await trio.to_thread.run_sync((again / file).read_bytes) == contents[file]

    async with trio.open_nursery() as nursery:
        for name in receivers:
            nursery.start_soon(restore, name)
    size = sum(map(len, contents.values()))
    sent = {node.name: await trio.to_thread.run_sync(sent_bytes, node) for node in cluster}
    assert sent["a"] <= 1.3 * size
    assert sum(sent.values()) <= 1.1 * len(receivers) * size


@pytest.mark.chaos  # the lease of a dead node runs out first
async def test_damage_is_seen_when_a_file_is_opened_and_costs_that_file_alone_when_nobody_else_has_it(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED, *DAMAGE)
    cluster = await make_cluster("a", "b", "c", "d", bucket=False, replicas=2, restoreAtOnce="0")
    make_cluster.check = False
    saved = await _lose_what_was_saved(cluster)
    node, mount = _without(cluster), cluster.mountpoint("again")
    holders = [cluster[name] for name in "bcd" if cluster[name] is not node]
    for number, damaged in ((3, holders), (4, holders[:1]), (5, holders[1:])):
        for holder in damaged:
            damage(_content_of(holder, 100_000 + number))
    await mount_when_free(node, mount)
    lost = mount / "step" / "003"

    def open_all() -> dict[str, object]:
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                lost.read_bytes()
        assert lost.stat().st_size == 100_003
        lost.unlink()
        (mount / "new").write_bytes(b"the volume goes on")
        (mount / "new").unlink()
        return dict(tree_of(mount))

    came = await trio.to_thread.run_sync(open_all)
    changed = ("step", "step/003")
    assert {path: found for path, found in came.items() if path not in changed} == {
        path: was for path, was in saved.items() if path not in changed
    }


def _content_of(holder: LocalNode, size: int) -> Path:
    (found,) = [path for path in blobs_in(holder) if path.stat().st_size == size]
    return found


@pytest.mark.chaos
async def test_a_worker_that_dies_while_content_comes_goes_on_where_it_was(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED, *_WORKER_DIED)
    cluster = await make_cluster("a", "b", "c", bucket=False, start=False, restoreAtOnce="0")
    for node in cluster:
        node.family.environment[failpoints.VARIABLE] = str(node.directory / "failpoint")
    await cluster.start()
    saved = await _lose_what_was_saved(cluster)
    node = next(cluster[name] for name in "bc" if not listed(layout_of(cluster[name])))
    failpoints.arm(node.family.environment[failpoints.VARIABLE], "restore.arrived", "kill")
    mount = cluster.mountpoint("again")
    await until(partial(_is_mounted, node, mount), 60)
    assert not Path(node.family.environment[failpoints.VARIABLE]).exists()
    assert await trio.to_thread.run_sync(tree_of, mount) == saved
    await until(partial(_lists_it, node))


@pytest.mark.chaos  # the holder is waited for first
async def test_what_was_given_up_is_had_again_though_the_job_goes_on_saving_and_opens_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED, r"restore\..*")
    slow = {"bulk": "10Mbps"}  # eight seconds for all
    cluster = await make_cluster(
        "a", "b", "c", bucket=False, replicas=1, keep={"ram": 1}, restoreAtOnce="0", limits=slow
    )
    contents = {f"{number}": os.urandom(2 << 20) for number in range(5)}
    mount, again = cluster.mountpoint("a"), cluster.mountpoint("again")
    await cluster["a"].mount(JOB, mount)
    for name, content in contents.items():
        (mount / name).write_bytes(content)
    await cluster["a"].wait(JOB, "peer", 60)
    await cluster["a"].lose_ram()
    node = _without(cluster)
    (holder,) = [cluster[name] for name in "bc" if cluster[name] is not node]
    await mount_when_free(node, again)
    await holder.kill()
    await cluster["a"].start()
    volume = layout_of(node).volume(Identity.parse(JOB))

    async def is_given_up() -> bool:
        return not coming_files(volume)

    async def is_back() -> bool:
        return not lost_files(volume)

    await until(is_given_up, 90)
    assert lost_files(volume)
    await holder.start()
    for number in range(6):
        (again / "saved").write_bytes(b"%d" % number)
        await node.wait(JOB, "peer", 60)
    await until(is_back, 60)
    assert {name: await trio.to_thread.run_sync((again / name).read_bytes) for name in contents} == contents


async def _lists_it(node: LocalNode) -> bool:
    return bool(listed(layout_of(node)))


async def _is_mounted(node: LocalNode, mount: Path) -> bool:
    """Whoever asked for the mount while the worker died asks again."""
    try:
        await mount_when_free(node, mount)
    except (TierUnavailable, MountError):
        return False
    return True
