"""What kubelet gets for its calls, against a real node: volumes that are there, and refusals that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import grpc
import pytest
import trio

from csi import csi_pb2 as pb
from csi.csi_pb2_grpc import IdentityStub, NodeStub
from csi.local.kubelet import KEY, Kubelet, Refused, begun, container, told_by
from fuse_tier.mount.table import mount_at
from tests.csi.conftest import Plugin
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

# Who runs root's program as an ordinary user, and says as whom it runs.
SET_USER_ID = "cp $(command -v id) id && chmod 4755 id && setpriv --reuid 4000 --clear-groups ./id -u"


async def refused(code: grpc.StatusCode, words: str, kubelet: Kubelet, pod: object, **changes: object) -> None:
    with pytest.raises(Refused) as refusal:
        await kubelet.publish(pod, **changes)  # type: ignore[arg-type]
    assert (refusal.value.code, words in refusal.value.message) == (code, True), str(refusal.value)


async def test_a_pod_writes_to_its_volume_and_the_next_of_its_name_finds_its_files(
    kubelet: Kubelet, plugin: Plugin, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("snapshot.postponed")  # the job never rests
    pod = await kubelet.start("llama-0")
    mount = mount_at(str(pod.target))
    assert mount is not None and mount.is_ours
    await kubelet.publish(pod)  # once more, as kubelet does after a restart of its own
    assert mount_at(str(pod.target)) == mount
    with container(pod) as job:
        await begun(job)
        told = await told_by(job)
    assert told["errors"] == [] and told["steps"] > 0
    stats = await kubelet.stats(pod)
    assert not stats.volume_condition.abnormal, stats.volume_condition.message
    of_bytes, of_inodes = stats.usage
    assert of_bytes.used >= (pod.target / "step_0").stat().st_size
    assert (of_inodes.used, of_inodes.unit) == (len(os.listdir(pod.target)), pb.VolumeUsage.INODES)
    assert 0 < of_bytes.available < of_bytes.total
    content = (pod.target / "step_0").read_bytes()
    await kubelet.end(pod)
    await kubelet.unpublish(pod)  # of what is gone already
    assert not pod.directory.exists()
    again = await kubelet.start("llama-0")
    assert (again.target / "step_0").read_bytes() == content
    with pytest.raises(Refused, match="NOT_FOUND"):
        await kubelet.stats(pod)
    await kubelet.end(again)
    assert "identity.after_pod" in plugin.log()


async def test_attributes_name_the_volume_and_a_group_and_a_read_only_pod_get_what_they_ask_for(
    kubelet: Kubelet,
) -> None:
    attributes = {"workload": "llama", "replica": "3", "run": "exp-7", "restore": "latest"}
    pod = await kubelet.start("writer-a", attributes=attributes, group="4242")
    assert os.getxattr(pod.target, "user.fuse_tier.identity") == b"default/llama/3"
    found = os.stat(pod.target)
    assert (found.st_gid, stat.S_IMODE(found.st_mode) & 0o2770) == (4242, 0o2770)
    (pod.target / "saved").write_text("content")
    assert (pod.target / "saved").stat().st_gid == 4242
    other = kubelet.stage("writer-b", attributes=attributes)
    await refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"default/llama/3 is the volume of pod default/writer-a ({pod.uid}) on node a: delete that pod",
        kubelet,
        other,
    )
    assert not any(other.target.iterdir())
    await kubelet.end(other)
    await kubelet.end(pod)
    reader = await kubelet.start("reader", attributes=attributes, read_only=True)
    assert (reader.target / "saved").read_text() == "content"
    with pytest.raises(OSError, match="Read-only"):
        (reader.target / "more").touch()
    await refused(grpc.StatusCode.ALREADY_EXISTS, "read-only: unpublish it first", kubelet, reader, readonly=False)
    await kubelet.end(reader)
    empty = await kubelet.start("fresh", attributes={**attributes, "restore": "none"})
    assert os.listdir(empty.target) == []
    await kubelet.end(empty)


async def test_a_pattern_in_the_pods_attributes_says_which_names_are_its_steps(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    attributes = {"workload": "llama", "replica": "3", "ranks": "2", "restore": "latest"}

    async def steps_of(attributes: dict[str, str], wanted: int) -> list[int]:
        """What its snapshot has, once that is listed."""
        pod = await kubelet.start("llama", attributes=attributes)
        (pod.target / "100").mkdir(exist_ok=True)
        (pod.target / "model-7.pt").write_text("seven")
        (pod.target / f"model-{wanted}.pt").write_text("another")
        await kubelet.end(pod)

        async def listed() -> list[int]:
            found = json.loads((await plugin.node.cli("ls", "--json")).stdout)
            newest = max(found, key=lambda one: int(one["number"]))
            return [newest["step"], *newest["older_steps"]]

        return await listed()

    assert await steps_of(attributes, 8) == [100]
    assert await steps_of({**attributes, "stepPattern": "model-{step}.pt"}, 9) == [9]
    assert await steps_of({**attributes, "stepPattern": "model-{step}.pt"}, 10) == [10, 9]


async def test_what_makes_no_sense_is_refused_and_nothing_is_mounted(kubelet: Kubelet) -> None:
    pod = kubelet.stage("llama-0")
    context = dict(pod.request().volume_context)
    malformed = grpc.StatusCode.INVALID_ARGUMENT
    mode = pb.VolumeCapability.AccessMode
    many = pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(), access_mode=mode(mode=mode.MULTI_NODE_MULTI_WRITER)
    )
    block = pb.VolumeCapability(
        block=pb.VolumeCapability.BlockVolume(), access_mode=mode(mode=mode.SINGLE_NODE_WRITER)
    )
    flagged = pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(mount_flags=["suid"]), access_mode=mode(mode=mode.SINGLE_NODE_WRITER)
    )
    grouped = pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(volume_mount_group=str((1 << 32) - 1)),
        access_mode=mode(mode=mode.SINGLE_NODE_WRITER),
    )
    elsewhere = str(kubelet.directory / "pods" / pod.uid / "volumes" / "other" / "ckpt" / "mount")
    nonsense: list[tuple[str, dict[str, object]]] = [
        ("volume_id is missing", {"volume_id": ""}),
        ("longer than 128", {"volume_id": "x" * 129}),
        ("target_path is missing", {"target_path": ""}),
        ("volume_capability is missing", {"volume_capability": None}),
        ("MULTI_NODE_MULTI_WRITER", {"volume_capability": many}),
        ("no block devices", {"volume_capability": block}),
        ("'suid' is none of ours", {"volume_capability": flagged}),
        ("is no group number", {"volume_capability": grouped}),
        ("only inline ephemeral", {"volume_context": {**context, f"{KEY}ephemeral": "false"}}),
        ("lacks csi.storage.k8s.io/pod.uid", {"volume_context": {**context, f"{KEY}pod.uid": ""}}),
        ("has 'workloda', which is none", {"volume_context": {**context, "workloda": "x"}}),
        ("replica says nothing without", {"volume_context": {**context, "replica": "3"}}),
        ("restore must be one of", {"volume_context": {**context, "restore": "newest"}}),
        (
            "volumeAttributes.stepPattern: step pattern '(a+)+' has {step} 0 times, and not once: write the name of "
            "a step at the root of the volume",
            {"volume_context": {**context, "stepPattern": "(a+)+"}},
        ),
        (
            "stepPattern: step pattern 'a/{step}' has a '/'",
            {"volume_context": {**context, "stepPattern": "a/{step}"}},
        ),
        ("volumeAttributes.run '../x'", {"volume_context": {**context, "run": "../x"}}),
        ("is no volume of a pod", {"target_path": "/etc"}),
        ("is no volume of a pod", {"target_path": elsewhere}),
        ("is no volume of a pod", {"target_path": str(pod.target).replace(pod.uid, f"{pod.uid}/../{pod.uid}")}),
        ("belongs to pod", {"volume_context": {**context, f"{KEY}pod.uid": "another"}}),
    ]
    for words, changes in nonsense:
        await refused(malformed, words, kubelet, pod, **changes)
    assert not pod.target.exists()
    secret = kubelet.directory / "secret"
    secret.mkdir()
    pod.target.parent.rename(pod.target.parent.with_name("away"))
    pod.target.parent.symlink_to(secret)
    await refused(malformed, "leads through a symlink", kubelet, pod)
    assert os.listdir(secret) == []
    with pytest.raises(Refused, match="leads through a symlink"):
        await kubelet.unpublish(pod)


async def test_a_volume_opens_no_device_and_lends_no_program_its_owners_rights(kubelet: Kubelet) -> None:
    pod = await kubelet.start("llama-0")
    with container(pod, "sh", "-c", SET_USER_ID) as job:
        said, _ = await trio.to_thread.run_sync(job.communicate)
    assert said == "4000\n"
    null = pod.target / "null"
    os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        null.open("rb")
    null.unlink()
    await kubelet.end(pod)


async def test_nobody_writes_beside_a_mount(kubelet: Kubelet, plugin: Plugin) -> None:
    pod = kubelet.stage("llama-0")
    await plugin.node.stop()
    with pytest.raises(Refused, match="DEADLINE_EXCEEDED"):  # kubelet loses patience
        await kubelet.call(NodeStub, "NodePublishVolume", pod.request(), 1.0)
    assert mount_at(str(pod.target)) is None
    assert stat.S_IMODE(pod.target.stat().st_mode) == 0
    with pytest.raises(PermissionError):
        (pod.target / "file").touch()
    await plugin.node.start()
    await kubelet.publish(pod)
    (pod.target / "file").touch()
    await kubelet.end(pod)


async def test_calls_for_one_volume_take_turns_and_those_for_others_do_not_wait(kubelet: Kubelet) -> None:
    outcomes: dict[str, list[str]] = {}

    async def race(name: str) -> None:
        pod = kubelet.stage(name)
        said = outcomes[name] = []

        async def one(work: object) -> None:
            try:
                await work(pod)  # type: ignore[operator]
                said.append("done")
            except Refused as refusal:
                said.append(refusal.code.name)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one, kubelet.publish)
                nursery.start_soon(one, kubelet.unpublish)
        await kubelet.publish(pod)
        (pod.target / "file").write_text(name)
        await kubelet.end(pod)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(race, f"llama-{number}")
    for said in outcomes.values():
        assert set(said) <= {"done", "ABORTED"} and "done" in said, outcomes


async def test_a_call_for_a_volume_that_another_call_is_at_work_on_is_told_so_and_changes_nothing(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    pod = kubelet.stage("llama-0")
    (worker,) = plugin.node.family.running("fuse_tier.replicate")
    os.kill(worker, signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kubelet.publish, pod)

        async def is_at_work() -> bool:
            return pod.target.exists()

        await until(is_at_work)
        for call in (kubelet.publish, kubelet.unpublish):
            with pytest.raises(Refused) as refusal:
                await call(pod)
            assert refusal.value.code is grpc.StatusCode.ABORTED
            assert f"{pod.volume_id} is being published by an earlier call" in refusal.value.message
        os.kill(worker, signal.SIGCONT)
    (pod.target / "file").touch()
    await kubelet.end(pod)


async def test_a_volume_is_not_taken_down_by_anothers_name_but_by_its_path_when_nobody_knows_it(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    pod, other = await kubelet.start("llama-0"), await kubelet.start("llama-1")
    for volume_id in (other.volume_id, "unheard-of"):
        request = pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(pod.target))
        with pytest.raises(Refused) as refusal:
            await kubelet.call(NodeStub, "NodeUnpublishVolume", request)
        assert refusal.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"has volume {pod.volume_id} of pod default/llama-0 ({pod.uid})" in refusal.value.message
    for each in (pod, other):
        (each.target / "file").touch()
    shutil.rmtree(f"{plugin.node.socket}.published")  # a disk that was lost
    for each in (pod, other):
        await kubelet.end(each)


async def test_what_the_plugin_says_of_itself(kubelet: Kubelet, plugin: Plugin, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("snapshot.postponed")  # the node may end in the middle of one
    info = await kubelet.call(IdentityStub, "GetPluginInfo", pb.GetPluginInfoRequest())
    assert info.name == "multitier-checkpoint.csi.storage.gke.io" and info.vendor_version
    node = await kubelet.call(NodeStub, "NodeGetInfo", pb.NodeGetInfoRequest())
    assert (node.node_id, node.max_volumes_per_node) == ("a", 100)
    assert stat.S_IMODE(os.stat(kubelet.socket).st_mode) == 0o600
    pod = await kubelet.start("llama-0")
    await plugin.node.stop()
    assert not await kubelet.is_ready()
    with pytest.raises(Refused) as refusal:
        await kubelet.unpublish(pod)
    assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
    assert "fuse container is not running" in refusal.value.message
    assert json.loads(Path(plugin.family.log).read_text().splitlines()[0])["role"] == "csi"
