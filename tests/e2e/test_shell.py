"""A volume as a person at a shell meets it: our commands, and tools that know nothing of us."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trio

from fuse_tier.errors import IdentityBusy
from fuse_tier.localcluster import LocalCluster, run_cli
from tests.e2e.jobs import JOB
from tests.harness.clusters import Clusters
from tests.harness.trees import tree_of
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]


@pytest.fixture
async def cluster(make_cluster: Clusters) -> LocalCluster:
    return await make_cluster("a", "b")


async def _run(*command: str) -> CompletedProcess[bytes]:
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)


async def test_a_volume_from_mount_to_unmount_with_the_command_line_alone(cluster: LocalCluster) -> None:
    node, mount = cluster["a"], cluster.directory / "ckpt"
    mount.mkdir()
    mounted = await node.cli("mount", "--identity", JOB, str(mount))
    assert (mounted.returncode, mounted.stderr) == (0, "")
    (mount / "step_1").mkdir()
    (mount / "step_1/weights").write_bytes(os.urandom(100_000))

    # No --node: the mount itself says whose it is.
    for tier in ("peer", "bucket"):
        waited = await run_cli("wait", str(mount), "--tier", tier, "--timeout", "60")
        assert (waited.returncode, waited.stderr) == (0, "")
    state = await _run("getfattr", "--only-values", "-n", "user.fuse_tier.state", str(mount / "step_1/weights"))
    assert state.stdout == b"ram,peer,bucket"

    listed = json.loads((await node.cli("ls", "--json")).stdout)
    newest = listed[-1]
    assert set(newest["tiers"]) == {"ram", "peer", "bucket"}
    shown = await node.cli("show", newest["id"])
    assert "step_1/weights" in shown.stdout
    status = await node.cli("status", "--json")
    told = json.loads(status.stdout)
    assert told["volumes"][0]["identity"] == JOB
    assert told["passthrough"].partition(": ")[0] in ("on", "off"), "as the kernel and the user can have it"
    assert (await node.cli("verify")).returncode == 0

    restored = cluster.directory / "restored"
    assert (await node.cli("restore", "--identity", JOB, "--to", str(restored))).returncode == 0
    assert tree_of(restored) == tree_of(mount)
    ended = await run_cli("unmount", str(mount))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not os.path.ismount(mount)


async def test_fusermount3_ends_a_mount_as_unmount_does(cluster: LocalCluster) -> None:
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount(JOB, mount)
    (mount / "file").write_bytes(b"content")
    assert (await _run("fusermount3", "-u", str(mount))).returncode == 0

    async def is_given_up() -> bool:
        return not any(volume["mounted"] for volume in (await node.status())["volumes"])

    await until(is_given_up)
    # What was written just before is in a snapshot, and another node may have it at once.
    again = cluster.mountpoint("again")
    await cluster["b"].mount(JOB, again)
    assert (again / "file").read_bytes() == b"content"


async def test_a_mount_right_after_an_unmount_keeps_the_identity(cluster: LocalCluster) -> None:
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    for content in (b"first", b"second"):
        (mount / "file").write_bytes(content)
        assert (await _run("fusermount3", "-u", str(mount))).returncode == 0
        await cluster["a"].mount(JOB, mount)
        assert (mount / "file").read_bytes() == content
    with pytest.raises(IdentityBusy, match="mounted on node a"):
        await cluster["b"].mount(JOB, cluster.mountpoint("b"))


async def test_writing_the_sync_attribute_waits_for_the_tier(cluster: LocalCluster) -> None:
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "file").write_bytes(b"content")
    done = await _run("setfattr", "-n", "user.fuse_tier.sync", "-v", "bucket", str(mount))
    assert (done.returncode, done.stderr) == (0, b"")
    assert _state(mount / "file").split(",")[-1] == "bucket"


async def test_a_bucket_that_does_not_exist_is_named_and_nothing_is_mounted_as_if_it_were_empty(
    make_cluster: Clusters,
) -> None:
    cluster = await make_cluster("a", start=False)
    make_cluster.check = False  # verify says, rightly, that there is no bucket
    make_cluster.expected_logs.allow("copy.failed", "list.place_silent", "restore.place_silent")
    assert cluster.bucket
    node, mount = cluster["a"], cluster.mountpoint("a")
    node.config["bucket"] = {"url": "gs://no-such-bucket/x", "endpoint": cluster.bucket.emulator.endpoint}
    await cluster.start()
    mount.mkdir(parents=True)
    refused = await node.cli("mount", "--identity", JOB, str(mount))
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "gs://no-such-bucket" in line
    assert not os.path.ismount(mount)
    (bucket,) = [tier for tier in (await node.status())["tiers"] if tier["tier"] == "bucket"]
    assert bucket["state"] == "refused"
    assert "gs://no-such-bucket does not exist" in bucket["reason"]


def _state(path: Path) -> str:
    return os.getxattr(path, "user.fuse_tier.state").decode()
