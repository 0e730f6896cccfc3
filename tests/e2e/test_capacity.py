"""A job that writes more than the RAM tier holds."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.localcluster import LocalNode
from tests.e2e.jobs import layout_of
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20


def content(step: int, size: int) -> bytes:
    block = hashlib.sha256(str(step).encode()).digest() * (MIB // 32)
    return block * (size // MIB)


def save(mount: Path, step: int, size: int) -> None:
    """A checkpoint as jobs save it: a directory of its own, renamed when it is whole, then a marker."""
    temporary = mount / f"step_{step}.tmp"
    temporary.mkdir()
    for rank in range(2):
        with (temporary / f"rank{rank}.bin").open("wb", buffering=0) as file:
            whole = memoryview(content(step * 10 + rank, size // 2))
            for start in range(0, len(whole), MIB):
                assert file.write(whole[start : start + MIB]) == MIB
    temporary.rename(mount / f"step_{step}")
    (mount / "latest").write_text(str(step))


def check(mount: Path, step: int, size: int) -> None:
    for rank in range(2):
        assert (mount / f"step_{step}" / f"rank{rank}.bin").read_bytes() == content(step * 10 + rank, size // 2)


def state_of(path: Path) -> str:
    return os.getxattr(path, "user.fuse_tier.state").decode()


async def is_receiving(node: LocalNode) -> bool:
    return bool(os.listdir(layout_of(node).incoming))


async def in_thread(work: Any, *arguments: Any) -> None:
    await trio.to_thread.run_sync(work, *arguments)


async def test_a_job_that_keeps_all_its_checkpoints_never_sees_a_full_disk(make_cluster: Any) -> None:
    cluster = await make_cluster("a", ram_size="128MiB", replicas=0, settle="50ms")
    node, mount, size = cluster["a"], cluster.mountpoint("a"), 32 * MIB
    await node.mount("default/job/0", mount)
    for step in range(1, 9):
        await in_thread(save, mount, step, size)
        await node.wait("default/job/0", "bucket", 60)
    listed = sorted(path.name for path in mount.iterdir())
    assert listed == sorted(["latest", *(f"step_{step}" for step in range(1, 9))])
    assert await trio.to_thread.run_sync(state_of, mount / "step_1" / "rank0.bin") == "remote"
    assert await trio.to_thread.run_sync(state_of, mount / "step_8" / "rank0.bin") == "ram,bucket"
    for step in (8, 1, 5):  # the newest is here; the others come back
        await in_thread(check, mount, step, size)
    status = (await node.status())["tiers"][0]
    assert status["free_bytes"] >= 0
    newest = max(await node.list("default/job/0"), key=lambda snapshot: int(snapshot.id.rpartition("@")[2]))
    assert newest.bytes >= 8 * size


async def test_a_job_that_saves_faster_than_the_bucket_takes_it_waits_for_room(make_cluster: Any) -> None:
    cluster = await make_cluster("a", ram_size="64MiB", replicas=0, settle="50ms")
    node, mount, size = cluster["a"], cluster.mountpoint("a"), 32 * MIB
    await node.mount("default/job/0", mount)
    for step in range(1, 6):
        await in_thread(save, mount, step, size)
    await in_thread(check, mount, 5, size)
    await node.wait("default/job/0", "bucket", 60)
    await in_thread(check, mount, 1, size)


async def test_a_job_that_replaces_its_checkpoints_needs_no_other_tier(make_cluster: Any) -> None:
    cluster = await make_cluster("a", ram_size="128MiB", replicas=0, bucket=False, settle="50ms")
    node, mount, size = cluster["a"], cluster.mountpoint("a"), 40 * MIB
    await node.mount("default/job/0", mount)
    for step in range(1, 9):
        await in_thread(save, mount, step, size)
        if step > 1:
            for rank in range(2):
                (mount / f"step_{step - 1}" / f"rank{rank}.bin").unlink()
            (mount / f"step_{step - 1}").rmdir()
        await node.wait("default/job/0", "ram", 60)
    await in_thread(check, mount, 8, size)


async def test_a_job_that_replaces_its_checkpoints_does_not_run_out_of_room_while_a_peer_is_slow(
    make_cluster: Any,
) -> None:
    """What is being copied was superseded long ago, and holds the room that the job needs."""
    cluster = await make_cluster("a", "b", ram_size="128MiB", bucket=False, settle="10m", start=False)
    cluster["a"].config["limits"] = {"bulk": "10Mbps"}
    await cluster.start()
    node, mount, size = cluster["a"], cluster.mountpoint("a"), 48 * MIB
    await node.mount("default/job/0", mount)
    for step in range(1, 6):
        await in_thread(save, mount, step, size)
        if step > 1:
            await in_thread(shutil.rmtree, mount / f"step_{step - 1}")
        await node.wait("default/job/0", "ram", 60)
        await until(partial(is_receiving, cluster["b"]))
    await in_thread(check, mount, 5, size)


async def test_where_nothing_can_be_given_up_a_full_tier_is_exact_and_a_removal_brings_it_back(
    make_cluster: Any,
) -> None:
    cluster = await make_cluster("a", ram_size="64MiB", replicas=0, bucket=False, settle="50ms")
    node, mount = cluster["a"], cluster.mountpoint("a")
    other = cluster.directory / "mnt" / "other"
    await node.mount("default/job/0", mount)
    await node.mount("default/job/1", other)
    (other / "theirs").write_bytes(b"theirs")

    def fill() -> int:
        written = 0
        with (mount / "large").open("wb", buffering=0) as file:
            with pytest.raises(OSError) as full:
                while True:
                    written += file.write(bytes(MIB))
            assert full.value.errno == errno.ENOSPC
        return written

    written = await trio.to_thread.run_sync(fill)
    assert os.stat(mount / "large").st_size == written
    assert written > 48 * MIB
    (mount / "marker").write_text("still written")
    (other / "marker").write_text("as well")
    assert "room.short" in node.log_path.read_text(), "it is said that nothing more could be given up"
    assert (other / "theirs").read_bytes() == b"theirs"
    await node.wait("default/job/0", "ram", 30)  # a snapshot has the large file, too, and is nowhere else
    await node.wait("default/job/1", "ram", 30)
    (mount / "large").unlink()

    async def has_room() -> bool:
        return os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize > 40 * MIB

    await until(has_room)
    await in_thread(save, mount, 1, 32 * MIB)
    await in_thread(check, mount, 1, 32 * MIB)


async def test_memory_is_made_ready_once_and_status_says_so(make_cluster: Any) -> None:
    cluster = await make_cluster("a", replicas=0, bucket=False, start=False)
    node = cluster["a"]
    node.config["ram"] |= {"size": "128MiB", "warm": True, "expectedSizes": {"*.bin": "8MiB"}}
    await cluster.start()

    async def ram() -> dict[str, Any]:
        return dict((await node.status())["tiers"][0])

    async def is_warm() -> bool:
        return (await ram())["warmed"] is not None

    await until(is_warm, 60)
    assert (await ram())["huge_pages"] in ("within_size", "never")
    mount = cluster.mountpoint("a")
    await node.mount("default/job/0", mount)
    with (mount / "first.bin").open("wb", buffering=0) as file:
        file.write(b"1")
        assert os.stat(node.ram_path / "volumes/default/job/0/tree/first.bin").st_blocks * 512 >= 8 * MIB
