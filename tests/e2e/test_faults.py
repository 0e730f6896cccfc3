"""What breaks around a job: peers, the bucket, stored bytes, names. It is told, survived, and put right again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_tier.demo.checkpoint import verify_checkpoint
from fuse_tier.errors import DeadlineExceeded, FuseTierError, IdentityBusy
from fuse_tier.localcluster import LocalCluster, LocalNode, NotStarted
from fuse_tier.wire import control_pb2 as pb
from tests.e2e.jobs import A_NODE_DIED, DAMAGE, JOB, blobs_in, checkpoint_of, damage, layout_of, mount_when_free, save
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

REFUSED = (r"coordinator\..*", r"membership\..*", r"worker\..*", r"fuse-tier: .*")


@pytest.fixture
async def cluster(make_cluster: Clusters) -> LocalCluster:
    return await make_cluster("a", "b")


async def test_a_second_mount_of_an_identity_is_refused_and_the_first_is_named(cluster: LocalCluster) -> None:
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    with pytest.raises(IdentityBusy, match=r"\ba\b"):
        await cluster["b"].mount(JOB, cluster.mountpoint("b"))
    assert not os.path.ismount(cluster.mountpoint("b"))
    with pytest.raises(IdentityBusy, match=str(cluster.mountpoint("a"))):
        await cluster["a"].mount(JOB, cluster.mountpoint("elsewhere"))


async def test_after_an_unmount_another_node_may_mount_at_once(cluster: LocalCluster) -> None:
    saved = checkpoint_of(1)
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(saved, cluster.mountpoint("a"))
    await cluster["a"].unmount(cluster.mountpoint("a"))
    await cluster["b"].mount(JOB, cluster.mountpoint("b"))
    verify_checkpoint(saved, cluster.mountpoint("b"))


async def test_a_peer_that_is_down_delays_its_copy_and_nothing_else(
    cluster: LocalCluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED)
    saved, mount = checkpoint_of(1), cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    await cluster["b"].kill()
    save(saved, mount)
    await cluster["a"].wait(JOB, "bucket", 60)
    with pytest.raises(DeadlineExceeded, match="peer"):
        await cluster["a"].wait(JOB, "peer", 0.5)
    await cluster["b"].start()
    await cluster["a"].wait(JOB, "peer", 90)


async def test_a_bucket_that_is_down_is_told_by_status_and_reached_when_it_is_back(
    cluster: LocalCluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(
        r"copy\.failed", r"bucket\..*", r"retention\..*", r"list\.place_silent", r"urllib3.*", r"Retrying.*"
    )
    saved, mount = checkpoint_of(1), cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    assert cluster.bucket
    await cluster.bucket.stop()
    save(saved, mount)
    await cluster["a"].wait(JOB, "peer", 60)
    with pytest.raises(DeadlineExceeded, match="bucket"):
        await cluster["a"].wait(JOB, "bucket", 0.5)
    (bucket,) = [tier for tier in (await cluster["a"].status())["tiers"] if tier["tier"] == "bucket"]
    assert bucket["state"] == "unavailable"
    assert bucket["reason"]
    coordinator = cluster.coordinator
    assert coordinator

    async def is_told() -> bool:
        return "coordinator.backup_failing" in coordinator.family.log.read_text()

    await until(is_told)
    await cluster.bucket.start()
    await cluster["a"].wait(JOB, "bucket", 120)


def _large_blobs(node: LocalNode) -> Iterator[Path]:
    return (path for path in blobs_in(node) if path.stat().st_size > 1 << 20)


async def test_damage_on_a_peer_is_seen_and_the_bucket_gives_the_bytes(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c")
    saved = checkpoint_of(1)
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(saved, cluster.mountpoint("a"))
    for tier in ("peer", "bucket"):
        await cluster["a"].wait(JOB, tier, 60)
    expected_logs.allow(*A_NODE_DIED, *DAMAGE)
    await cluster["a"].lose_ram()
    (holder,) = [node for node in (cluster["b"], cluster["c"]) if blobs_in(node)]
    (other,) = {"b", "c"} - {holder.name}
    for blob in list(_large_blobs(holder)):
        damage(blob)
    await mount_when_free(cluster[other], cluster.mountpoint("again"))
    verify_checkpoint(saved, cluster.mountpoint("again"))
    make_cluster.check = False  # the damaged copy may still be listed where nobody asked for it


async def test_damage_in_a_nodes_own_ram_is_seen_and_another_place_gives_the_bytes(
    cluster: LocalCluster, make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    saved = checkpoint_of(1)
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(saved, cluster.mountpoint("a"))
    for tier in ("peer", "bucket"):
        await cluster["a"].wait(JOB, tier, 60)
    expected_logs.allow(*A_NODE_DIED, *DAMAGE)
    await cluster["a"].lose_ram()
    for blob in list(_large_blobs(cluster["b"])):
        damage(blob)
    await mount_when_free(cluster["b"], cluster.mountpoint("again"))
    verify_checkpoint(saved, cluster.mountpoint("again"))
    make_cluster.check = False


async def test_a_truncated_manifest_is_passed_over_for_the_same_one_elsewhere(
    cluster: LocalCluster, make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    saved = checkpoint_of(1)
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(saved, cluster.mountpoint("a"))
    for tier in ("peer", "bucket"):
        await cluster["a"].wait(JOB, tier, 60)
    expected_logs.allow(*A_NODE_DIED, *DAMAGE, "snapshot.unreadable", "list.manifest_unreadable")
    await cluster["a"].lose_ram()
    manifests = listed(layout_of(cluster["b"]))
    assert manifests
    for snapshot in manifests:
        path = layout_of(cluster["b"]).manifest(snapshot)
        os.truncate(path, Path(path).stat().st_size - 7)
    await mount_when_free(cluster["b"], cluster.mountpoint("again"))
    verify_checkpoint(saved, cluster.mountpoint("again"))
    make_cluster.check = False


async def test_bytes_that_are_damaged_everywhere_are_never_handed_out(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", bucket=False)
    make_cluster.check = False
    saved = checkpoint_of(1)
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(saved, cluster.mountpoint("a"))
    await cluster["a"].wait(JOB, "peer", 60)
    expected_logs.allow(*A_NODE_DIED, *DAMAGE)
    await cluster["a"].lose_ram()
    for blob in list(_large_blobs(cluster["b"])):
        damage(blob)
    again = cluster.mountpoint("again")
    try:
        await mount_when_free(cluster["b"], again)
    except FuseTierError:
        assert not os.path.ismount(again)
        return
    for path, content in saved.files.items():
        if len(content) > 1 << 20:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (again / path).read_bytes()
        else:
            assert (again / path).read_bytes() == content


async def test_verify_finds_and_names_damage(
    cluster: LocalCluster, make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    make_cluster.check = False
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(checkpoint_of(1), cluster.mountpoint("a"))
    await cluster["a"].wait(JOB, "peer", 60)
    damaged = next(_large_blobs(cluster["b"]))
    expected_logs.allow(*DAMAGE)
    damage(damaged)
    done = await cluster["a"].cli("verify", "--tier", "peer")
    assert done.returncode == 1
    assert damaged.name in done.stderr


async def test_a_second_node_of_a_name_is_refused(
    make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", bucket=False, tls=False)
    expected_logs.allow(*REFUSED)
    twin = cluster["b"]
    await twin.stop()
    with pytest.raises(NotStarted, match=r"\ba\b"):
        await twin.start(node="a", ram={"path": str(twin.ram_path.parent / "twin"), "size": "64MiB"})
    await cluster["a"].status()


async def test_a_node_of_another_cluster_is_refused(make_cluster: Clusters, expected_logs: ExpectedLogs) -> None:
    cluster = await make_cluster("a", "b", bucket=False)
    expected_logs.allow(*REFUSED)
    stranger = cluster["b"]
    await stranger.stop()
    with pytest.raises(NotStarted, match="cluster"):
        await stranger.start(cluster="another", ram={"path": str(stranger.ram_path.parent / "new"), "size": "64MiB"})
    assert {member.node for member in (await _picture(cluster)) if member.alive} == {"a"}


async def test_the_coordinators_absence_stops_no_job(cluster: LocalCluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow(*A_NODE_DIED)
    saved, mount = checkpoint_of(1), cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    assert cluster.coordinator
    await cluster.coordinator.kill()
    save(saved, mount)
    await cluster["a"].wait(JOB, "peer", 60)
    await cluster["a"].wait(JOB, "bucket", 60)
    await cluster.coordinator.start()

    async def known_again() -> bool:
        return JOB in {identity for member in await _picture(cluster) for identity in member.mounted}

    await until(known_again)


async def test_a_restore_says_who_could_not_be_asked_and_not_that_there_is_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", bucket=False, replicas=0)
    await cluster["a"].mount(JOB, cluster.mountpoint("a"))
    save(checkpoint_of(1), cluster.mountpoint("a"))
    await cluster["a"].wait(JOB, "ram", 60)
    expected_logs.allow(*A_NODE_DIED)
    assert cluster.coordinator
    await cluster.coordinator.kill()
    await cluster["a"].kill()
    target = cluster.directory / "restored"
    for more in ((), ("--snapshot", "1")):
        done = await cluster["b"].cli("restore", "--identity", JOB, "--to", str(target), *more)
        assert done.returncode == 1
        assert "node a (" in done.stderr
        assert "could not be asked" in done.stderr
        assert not target.exists()
    await cluster.coordinator.start()
    await cluster["a"].start()


async def test_a_mountpoint_that_cannot_be_one_is_refused_in_one_line(cluster: LocalCluster) -> None:
    missing, a_file, mounted = (cluster.directory / name for name in ("missing", "a-file", "mounted"))
    a_file.write_bytes(b"")
    await cluster["a"].mount("default/other/0", mounted)
    for place in (missing, a_file, mounted):
        done = await cluster["a"].cli("mount", "--identity", JOB, str(place))
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert str(place) in line


async def test_a_ram_path_with_somebody_elses_files_is_refused_and_left_alone(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", start=False, bucket=False, coordinator=False)
    expected_logs.allow(r".*")
    node = cluster["a"]
    node.ram_path.mkdir(parents=True)
    (node.ram_path / "precious").write_text("mine")
    with pytest.raises(NotStarted, match=str(node.ram_path)):
        await node.start()
    assert (node.ram_path / "precious").read_text() == "mine"


async def _picture(cluster: LocalCluster) -> list[pb.Member]:
    assert cluster.coordinator
    return list((await cluster.coordinator.picture()).members)


async def test_after_an_unmount_another_node_has_what_was_saved_though_nobody_else_has_it(
    make_cluster: Clusters,
) -> None:
    cluster = await make_cluster("a", "b", bucket=False, replicas=0)
    for number in range(4):
        identity, mount = f"default/job/{number}", cluster.mountpoint("a") / str(number)
        await cluster["a"].mount(identity, mount)
        (mount / "weights").write_bytes(b"0123" * number)
        await cluster["a"].unmount(mount)
        await cluster["b"].mount(identity, cluster.mountpoint("b") / str(number))
        assert (cluster.mountpoint("b") / str(number) / "weights").read_bytes() == b"0123" * number
