"""The promise itself: a job's files survive its node, and then all nodes, byte by byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_tier.demo.checkpoint import verify_checkpoint, write_checkpoint
from fuse_tier.hashing import hash_bytes
from fuse_tier.localcluster import LocalCluster
from tests.e2e.jobs import A_NODE_DIED, JOB, checkpoint_of, mount_when_free, save, without_a_copy
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.trees import tree_of

pytestmark = [pytest.mark.fuse]


def state_of(path: Path) -> str:
    return os.getxattr(path, "user.fuse_tier.state").decode()


@pytest.fixture
async def cluster(make_cluster: Clusters) -> LocalCluster:
    return await make_cluster("a", "b", "c")


async def test_a_checkpoint_comes_back_from_a_peer_and_then_from_the_bucket(
    cluster: LocalCluster, expected_logs: ExpectedLogs
) -> None:
    saved, mount = checkpoint_of(100), cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    write_checkpoint(saved, mount)
    verify_checkpoint(saved, mount)
    for tier in ("ram", "peer", "bucket"):
        await cluster["a"].wait(JOB, tier, 60)
        assert tier in state_of(mount / "latest").split(",")
    shard = mount / "step_100/rank_0.bin"
    assert os.getxattr(shard, "user.fuse_tier.hash").decode() == hash_bytes(shard.read_bytes()).digest.hex()

    expected_logs.allow(*A_NODE_DIED)
    await cluster["a"].lose_ram()
    second = await without_a_copy(cluster, "b", "c")
    again = cluster.mountpoint("again")
    facts = await mount_when_free(second, again)
    assert "peer" in str(facts["restored"])
    verify_checkpoint(saved, again)

    expected_logs.allow(*A_NODE_DIED)
    await cluster.lose_all_ram()
    await cluster["c"].start()
    at_last = cluster.mountpoint("at-last")
    facts = await mount_when_free(cluster["c"], at_last)
    assert "gs://" in str(facts["restored"])
    verify_checkpoint(saved, at_last)


async def test_modes_times_links_and_odd_names_come_back(cluster: LocalCluster, expected_logs: ExpectedLogs) -> None:
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    _write_odd_things(mount)
    before = tree_of(mount)
    await cluster["a"].wait(JOB, "peer", 60)
    expected_logs.allow(*A_NODE_DIED)
    await cluster["a"].lose_ram()
    again = cluster.mountpoint("again")
    await mount_when_free(cluster["b"], again)
    assert tree_of(again) == before


async def test_the_job_goes_on_after_each_restore(cluster: LocalCluster, expected_logs: ExpectedLogs) -> None:
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    node = cluster["a"]
    for step, following in ((1, "b"), (2, "c"), (3, None)):
        saved = checkpoint_of(step)
        for old in mount.glob("step_*"):
            _remove(old)
        save(saved, mount)
        verify_checkpoint(saved, mount)
        if following is None:
            return
        await node.wait(JOB, "peer", 60)
        expected_logs.allow(*A_NODE_DIED)
        await node.lose_ram()
        node, mount = cluster[following], cluster.mountpoint(following)
        await mount_when_free(node, mount)
        verify_checkpoint(saved, mount)


async def test_an_orderly_unmount_leaves_all_and_the_next_mount_finds_it_in_its_own_ram(
    cluster: LocalCluster,
) -> None:
    saved, mount = checkpoint_of(7), cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    save(saved, mount)
    await cluster["a"].unmount(mount)
    assert list(mount.iterdir()) == []
    await cluster["a"].mount(JOB, mount)
    verify_checkpoint(saved, mount)


async def test_a_node_ends_cleanly_on_sigterm_and_leaves_no_process(make_cluster: Clusters) -> None:
    cluster = await make_cluster("a", "b")
    saved, mount = checkpoint_of(7), cluster.mountpoint("a")
    node = cluster["a"]
    await node.mount(JOB, mount)
    save(saved, mount)
    assert await node.stop() == 0
    assert node.family.members() == set()
    assert not os.path.ismount(mount)
    # It waited for its copies: the other node has everything.
    again = cluster.mountpoint("again")
    await mount_when_free(cluster["b"], again)
    verify_checkpoint(saved, again)


async def test_without_a_coordinator_peers_find_each_other(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", coordinator=False, bucket=False)
    saved, mount = checkpoint_of(1), cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    save(saved, mount)
    await cluster["a"].wait(JOB, "peer", 60)
    expected_logs.allow(*A_NODE_DIED)
    await cluster["a"].lose_ram()
    again = cluster.mountpoint("again")
    await mount_when_free(cluster["b"], again)
    verify_checkpoint(saved, again)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_ten_thousand_small_files_come_back(make_cluster: Clusters, expected_logs: ExpectedLogs) -> None:
    cluster = await make_cluster("a", "b", bucket=False, ram_size="1GiB")
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    expected_logs.allow("snapshot.postponed", "hold.lapsed")  # the job writes for longer than it may be held back
    _write_small_files(mount, 10_000)
    before = tree_of(mount)
    await cluster["a"].wait(JOB, "peer", 200)
    expected_logs.allow(*A_NODE_DIED)
    await cluster["a"].lose_ram()
    again = cluster.mountpoint("again")
    await mount_when_free(cluster["b"], again)
    assert tree_of(again) == before


def _write_odd_things(place: Path) -> None:
    (place / "a blank, ümlauts and\nnewlines").write_bytes(b"odd")
    (place / "directory").mkdir(mode=0o2750)
    (place / "directory/script").write_bytes(b"#!/bin/sh\n")
    (place / "directory/script").chmod(0o4755)
    (place / "dangling").symlink_to("nowhere/at all")
    os.link(place / "directory/script", place / "second name")
    os.mkfifo(place / "pipe", 0o600)
    (place / "empty directory").mkdir()
    (place / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"\xff")
    with (place / "sparse").open("wb") as sparse:
        sparse.truncate(3 << 20)
    for path, seconds in (("directory/script", 1_000_000_000), ("sparse", 1), ("empty directory", 1_234_567_890)):
        os.utime(place / path, ns=(seconds * 10**9 + 123_456_789, seconds * 10**9 + 123_456_789))
    os.setxattr(place / "sparse", "user.note", b"kept")


def _write_small_files(place: Path, count: int) -> None:
    for number in range(count):
        directory = place / f"{number % 100:02}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number}").write_bytes(b"%d" % number * 600)


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    directory.rmdir()
