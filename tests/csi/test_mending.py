"""Whatever state things are in, a volume can be taken down in time, and what was left behind is set right."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from csi import csi_pb2 as pb
from csi.csi_pb2_grpc import NodeStub
from csi.local.kubelet import Kubelet, PodVolume, Refused, begun, container, told_by
from fuse_tier.localcluster import LocalCluster
from fuse_tier.localcluster.processes import detach_mounts
from fuse_tier.mount.table import mount_at
from fuse_tier.node.processes import Process
from tests.csi.conftest import Plugin, plugin_beside
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

LONGEST_SECONDS = 10.0  # what a volume's end may take, whatever hangs


async def ended_in_time(kubelet: Kubelet, pod: PodVolume) -> None:
    """By one call with that deadline: kubelet need not ask again."""
    request = pb.NodeUnpublishVolumeRequest(volume_id=pod.volume_id, target_path=str(pod.target))
    await kubelet.call(NodeStub, "NodeUnpublishVolume", request, LONGEST_SECONDS)
    assert not pod.target.exists()
    assert mount_at(str(pod.target)) is None
    kubelet.forget(pod)


def keeper_of(plugin: Plugin) -> tuple[int, int]:
    """The keeper and the daemon of the only mount."""
    family = plugin.node.family
    of_mount = family.running("fuse_tier.fs")
    (keeper,) = [pid for pid in of_mount if parent_of(pid) not in of_mount]
    (daemon,) = of_mount - {keeper}
    return keeper, daemon


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_volume_ends_in_time_though_a_job_holds_it_and_the_worker_hangs(
    kubelet: Kubelet, plugin: Plugin, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("snapshot.postponed")  # the job never rests
    pod = await kubelet.start("llama-0")
    (worker,) = plugin.node.family.running("fuse_tier.replicate")
    with container(pod) as job:
        await begun(job)
        os.kill(worker, signal.SIGSTOP)
        await ended_in_time(kubelet, pod)
        os.kill(worker, signal.SIGCONT)
    again = await kubelet.start("llama-0")
    assert (again.target / "held").exists()
    await kubelet.end(again)


async def test_a_volume_ends_in_time_though_its_daemon_hangs(
    kubelet: Kubelet, plugin: Plugin, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("mount.forced", "volume.daemon_lost", "mount.aborted", "volume.unmounted", "daemon.ended")
    expected_logs.allow("snapshot.postponed")
    pod = await kubelet.start("llama-0")
    (pod.target / "file").write_text("content")
    _, daemon = keeper_of(plugin)
    os.kill(daemon, signal.SIGSTOP)
    waiting = await trio.lowlevel.open_process(["ls", str(pod.target)], stderr=subprocess.DEVNULL)
    stats = await kubelet.stats(pod)
    assert stats.volume_condition.abnormal
    assert "does not answer" in stats.volume_condition.message
    await ended_in_time(kubelet, pod)
    os.kill(daemon, signal.SIGCONT)
    await waiting.wait()
    again = await kubelet.start("llama-0")
    assert (again.target / "file").read_text() == "content"
    await kubelet.end(again)


async def test_a_dead_mount_is_not_replaced_but_taken_down(
    kubelet: Kubelet, plugin: Plugin, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.failed", "volume.daemon_lost", "vault.stands_in")
    await plugin.kill()  # nobody has a copy of what the keeper has
    pod = kubelet.stage("llama-0")
    await plugin.start()
    await kubelet.publish(pod)
    (pod.target / "file").write_text("content")
    await plugin.kill()
    keeper, _ = keeper_of(plugin)
    process = Process("keeper", keeper)
    process.kill()
    await process.wait()
    await plugin.start()

    async def is_known_to_be_dead() -> bool:
        return "its mount is dead" in (await kubelet.stats(pod)).volume_condition.message

    await until(is_known_to_be_dead)
    with pytest.raises(Refused, match=r"is dead .* and pod default/llama-0 .* may hold it: delete the pod"):
        await kubelet.publish(pod)
    await ended_in_time(kubelet, pod)
    again = await kubelet.start("llama-0")
    assert (again.target / "file").read_text() == "content"
    await kubelet.end(again)


async def test_a_pod_that_went_while_the_plugin_was_down_is_taken_down_at_its_start(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    gone, alive = await kubelet.start("gone"), await kubelet.start("alive")
    await plugin.kill()
    detach_mounts(gone.target)
    await trio.run_process(["chattr", "-i", str(gone.target)])
    shutil.rmtree(gone.directory)
    await plugin.start()

    async def is_taken_down() -> bool:
        return '"orphan.taken_down"' in plugin.log()

    await until(is_taken_down)
    (alive.target / "file").write_text("nobody has touched this one")
    assert not (await kubelet.stats(alive)).volume_condition.abnormal
    again = await kubelet.start("gone")
    await kubelet.end(again)
    await kubelet.end(alive)


async def test_after_a_reboot_the_same_pod_gets_its_volume_again(
    kubelet: Kubelet, plugin: Plugin, cluster: LocalCluster
) -> None:
    pod = await kubelet.start("llama-0")
    await plugin.kill()
    await cluster["a"].lose_ram()  # directories and notes are there, memory and mounts are not
    detach_mounts(kubelet.directory)
    await plugin.node.start()
    await plugin.start()
    assert (await kubelet.stats(pod)).volume_condition.abnormal
    await kubelet.publish(pod)
    (pod.target / "file").touch()
    await kubelet.end(pod)


async def test_a_mount_that_was_half_made_when_the_plugin_died_is_made_by_the_next(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    pod = kubelet.stage("llama-0")
    (worker,) = plugin.node.family.running("fuse_tier.replicate")
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(Refused, match="DEADLINE_EXCEEDED"):
        await kubelet.call(NodeStub, "NodePublishVolume", pod.request(), 1.0)
    await plugin.kill()
    plugin.family.start()
    os.kill(worker, signal.SIGCONT)
    await until(kubelet.is_ready)
    await kubelet.publish(pod)
    (pod.target / "file").touch()
    await kubelet.end(pod)


async def test_a_kubelet_that_was_started_again_asks_again_and_finds_each_volume_as_it_was(
    kubelet: Kubelet, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("snapshot.postponed")  # the job never rests
    pod = await kubelet.start("llama-0", group="4242", user=4000)
    mount = mount_at(str(pod.target))
    with container(pod) as job:
        await begun(job)
        again = Kubelet(kubelet.directory, kubelet.socket)
        node = await again.call(NodeStub, "NodeGetInfo", pb.NodeGetInfoRequest())
        assert (node.node_id, node.max_volumes_per_node) == ("a", 100)
        await again.publish(pod)
        assert not (await again.stats(pod)).volume_condition.abnormal
        told = await told_by(job)
    assert told["errors"] == [] and told["steps"] > 0
    assert mount_at(str(pod.target)) == mount
    await again.end(pod)


async def test_a_volume_ends_in_time_though_neither_peer_nor_bucket_answers_and_its_job_waits_for_them(
    make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"membership\..*", "copy.failed", "restore.place_silent", "volume.cut_off")
    cluster = await make_cluster("a", "b", tls=False, coordinator=False, fsync="bucket")
    async with plugin_beside(cluster["a"], tmp_path, expected_logs) as plugin:
        kubelet = plugin.kubelet
        pod = await kubelet.start("llama-0")
        cluster["b"].family.freeze()
        assert cluster.bucket is not None
        bucket = cluster.bucket.emulator.pid
        os.kill(bucket, signal.SIGSTOP)
        with container(pod, sys.executable, "-c", SAVES) as job:
            await begun(job)
            await ended_in_time(kubelet, pod)
        os.kill(bucket, signal.SIGCONT)
        cluster["b"].family.thaw()
        again = await kubelet.start("llama-0")
        assert (again.target / "saved").read_text() == "content"
        await kubelet.end(again)


SAVES = """
import os
file = open("/mnt/saved", "w")
file.write("content")
file.flush()
print("ready", flush=True)
os.fsync(file.fileno())
"""
