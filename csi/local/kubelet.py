"""Stands in for kubelet: stages a pod's directories, calls the plugin with its deadlines, runs containers.

A container is a process in a mount namespace of its own, in which the pod's volume is bind-mounted and which hears
of no mount that comes later: what kubelet and a container runtime make of a volume.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trio

from csi import csi_pb2 as pb
from csi.csi_pb2_grpc import IdentityStub, NodeStub
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster.processes import detach_mounts

DEADLINE_SECONDS = 120.0
KEY = "csi.storage.k8s.io/"


@dataclass(frozen=True, slots=True)
class PodVolume:
    """A pod with one volume of ours."""

    name: str
    uid: str
    directory: Path
    attributes: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = False
    group: str = ""
    namespace: str = "default"
    user: int = 0
    """As whom its container's writer writes."""

    @property
    def volume_id(self) -> str:
        """As kubelet makes one."""
        return f"csi-{self.uid}"

    @property
    def target(self) -> Path:
        """Where the volume is to be."""
        return self.directory / "volumes" / "kubernetes.io~csi" / "ckpt" / "mount"

    def request(self, **changes: Any) -> pb.NodePublishVolumeRequest:
        """As kubelet writes it for an inline volume."""
        context = {
            f"{KEY}ephemeral": "true",
            f"{KEY}pod.name": self.name,
            f"{KEY}pod.namespace": self.namespace,
            f"{KEY}pod.uid": self.uid,
            f"{KEY}serviceAccount.name": "default",
        }
        mode = pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
        mount = pb.VolumeCapability.MountVolume(volume_mount_group=self.group)
        fields: dict[str, Any] = {
            "volume_id": self.volume_id,
            "target_path": str(self.target),
            "volume_capability": pb.VolumeCapability(mount=mount, access_mode=mode),
            "readonly": self.read_only,
            "volume_context": {**context, **self.attributes},
        }
        return pb.NodePublishVolumeRequest(**fields | changes)


class Refused(Exception):
    """The plugin said no."""

    def __init__(self, error: grpc.RpcError) -> None:
        status: Any = error
        self.code: grpc.StatusCode = status.code()
        self.message: str = status.details()
        super().__init__(f"{self.code.name}: {self.message}")


async def ask(socket: str, stub: type, name: str, request: Any, deadline_seconds: float = DEADLINE_SECONDS) -> Any:
    """One call over a connection of its own. Raises Refused."""

    def work() -> Any:
        with grpc.insecure_channel(f"unix:{socket}", options=(("grpc.enable_http_proxy", 0),)) as channel:
            try:
                return getattr(stub(channel), name)(request, timeout=deadline_seconds)
            except grpc.RpcError as error:
                raise Refused(error) from None

    return await trio.to_thread.run_sync(work)


class Kubelet:
    """One node's."""

    def __init__(self, directory: Path, socket: str) -> None:
        self.directory = directory
        self.socket = socket
        (directory / "pods").mkdir(parents=True, exist_ok=True)
        (directory / "plugins_registry").mkdir(exist_ok=True)

    async def call(self, stub: type, name: str, request: Any, deadline_seconds: float = DEADLINE_SECONDS) -> Any:
        """One call of the plugin. Raises Refused."""
        return await ask(self.socket, stub, name, request, deadline_seconds)

    def stage(self, name: str, **settings: Any) -> PodVolume:
        """Makes a pod's directories, as kubelet does before it asks for a volume."""
        uid = settings.pop("uid", None) or str(uuid.uuid4())
        pod = PodVolume(name, uid, self.directory / "pods" / uid, **settings)
        pod.target.parent.mkdir(parents=True, exist_ok=True)
        said = {"driverName": "multitier-checkpoint.csi.storage.gke.io", "specVolID": "ckpt"}
        (pod.target.parent / "vol_data.json").write_text(json.dumps(said))
        return pod

    async def publish(self, pod: PodVolume, **changes: Any) -> None:
        """Once. Raises Refused."""
        await self.call(NodeStub, "NodePublishVolume", pod.request(**changes))

    async def start(self, name: str, **settings: Any) -> PodVolume:
        """A pod whose volume is there."""
        pod = self.stage(name, **settings)
        await self.publish(pod)
        return pod

    async def unpublish(self, pod: PodVolume) -> None:
        """Once. Raises Refused."""
        request = pb.NodeUnpublishVolumeRequest(volume_id=pod.volume_id, target_path=str(pod.target))
        await self.call(NodeStub, "NodeUnpublishVolume", request)

    async def end(self, pod: PodVolume, patience_seconds: float = 60.0) -> None:
        """Takes a pod down: asks until the volume is gone, then removes the pod's directories."""
        with trio.fail_after(patience_seconds):
            while True:
                try:
                    await self.unpublish(pod)
                    break
                except Refused as refusal:
                    if refusal.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED):
                        raise
                await trio.sleep(0.2)
        self.forget(pod)

    def forget(self, pod: PodVolume) -> None:
        """Removes what it has staged; never what is in a volume."""
        (pod.target.parent / "vol_data.json").unlink()
        for directory in (pod.target.parent, *list(pod.target.parent.parents)[:3]):
            directory.rmdir()

    async def stats(self, pod: PodVolume) -> pb.NodeGetVolumeStatsResponse:
        """How full the volume is, and whether it is well."""
        request = pb.NodeGetVolumeStatsRequest(volume_id=pod.volume_id, volume_path=str(pod.target))
        answer: pb.NodeGetVolumeStatsResponse = await self.call(NodeStub, "NodeGetVolumeStats", request)
        return answer

    async def is_ready(self) -> bool:
        """What the liveness probe asks."""
        try:
            answer = await self.call(IdentityStub, "Probe", pb.ProbeRequest(), 10.0)
        except Refused:
            return False
        return bool(answer.ready.value)

    def clean_up(self) -> None:
        """Leaves nothing, whatever a test did."""
        detach_mounts(self.directory)
        for target in self.directory.glob("pods/*/volumes/*/*/mount"):
            subprocess.run(["chattr", "-i", str(target)], check=False, capture_output=True)
        shutil.rmtree(self.directory)


@contextmanager
def container(pod: PodVolume, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a command in a container of the pod, which has the volume at /mnt; it is killed in the end."""
    flag = ",ro" if pod.read_only else ""
    script = f'mount --make-rprivate / && mount -o bind{flag} "$0" /mnt && cd /mnt && exec "$@"'
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, str(pod.target), *(command or (sys.executable, "-c", WRITER))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "WRITES_AS": str(pod.user), "GROUP": pod.group or "0"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


WRITER = """
import json, os, sys, threading, time
# Writes checkpoints as a job does, reads them back, and keeps one file open throughout; tells of each error.
told = threading.Event()
if user := int(os.environ["WRITES_AS"]):
    os.setgroups([int(os.environ["GROUP"])])
    os.setgid(user)
    os.setuid(user)
threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
steps, errors, longest = 0, [], 0.0
held = open("/mnt/held", "w+b", buffering=0)
print("ready", flush=True)
while True:
    started = time.monotonic()
    try:
        content = bytes([steps % 251]) * (1 << 16)
        with open("/mnt/new.tmp", "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.rename("/mnt/new.tmp", f"/mnt/step_{steps % 5}")
        with open(f"/mnt/step_{steps % 5}", "rb") as file:
            if file.read() != content:
                errors.append(f"step {steps}: other content")
        held.write(content[:100])
        if os.fstat(held.fileno()).st_size != 100 * (steps + 1):
            errors.append(f"step {steps}: other size")
    except OSError as error:
        errors.append(f"step {steps}: {error}")
        if len(errors) > 10:
            break
    steps += 1
    longest = max(longest, time.monotonic() - started)
    if told.is_set():
        break
print(json.dumps({"steps": steps, "errors": errors, "longest": longest}), flush=True)
"""


async def told_by(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Has the writer come to its end; gives what it says then."""
    if process.stdin is not None:
        process.stdin.close()
    return dict(json.loads(await _line(process)))


async def begun(process: subprocess.Popen[str]) -> None:
    """Returns when the writer writes. Raises FuseTierError when it cannot."""
    if await _line(process) != "ready\n":
        raise FuseTierError("the job could not be started: see above")


async def _line(process: subprocess.Popen[str]) -> str:
    stream = process.stdout
    return "" if stream is None else await trio.to_thread.run_sync(stream.readline)
