"""Kubelet of one node of a kwok cluster, as far as the driver's deployments need one: it really runs their programs.

What is real: the command and arguments, the volumes (config maps, secrets, and the service account's token, asked of
the API server, so that a program has its account's rights and no others), the readiness probe, which alone makes the
pod ready, restarts, and the end by SIGTERM. What is not: ports are free ones instead, since other tests run beside
this one; and there are no limits, no isolation, no liveness probes. A pod has one container, and a label ``app``: all
others are somebody else's.
"""

from __future__ import annotations

import base64
import math
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
import yaml

from controller.local.kube import start_program
from controller.local.kwok import OWN_NODE, KwokCluster
from controller.ranks.sign import LABEL, LEADS
from controller.writing import Gone
from fuse_tier.errors import TierUnavailable
from fuse_tier.localcluster.ports import free_ports
from tests.harness.service import serve_service

_LOOK_SECONDS = 0.1
_PROBE_SECONDS = 5.0
_RESTART_SECONDS = 1.0
_STOP_SECONDS = 20.0
_RANKS_PORT = 19346
_TOKEN = "serviceaccount"  # noqa: S105 - a directory's name


@dataclass
class Container:
    """What is to be run for a pod. ``volumes`` are directories, by where the container expects them."""

    name: str
    image: str
    command: list[str]
    volumes: Mapping[str, Path]
    environment: dict[str, str] = field(default_factory=dict)
    kubeconfig: Path = Path()
    ranks_server: str = ""
    """What the name of its service would lead to, if there were one who serves names."""


Runtime = Callable[[Container], list[str]]
"""Gives the command of this machine that runs a container's."""


@dataclass
class _Pod:
    uid: str
    path: str
    spec: Mapping[str, Any]
    metadata: Mapping[str, Any]
    directory: Path
    ports: dict[int, int]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = -1
    next_start: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)


class OwnNode:
    """Runs the pods that the scheduler gives to the node ``own``. Logs are in ``directory``."""

    def __init__(self, cluster: KwokCluster, directory: Path, runtime: Runtime) -> None:
        self._cluster = cluster
        self._directory = directory
        self._runtime = runtime
        self._pods: dict[str, _Pod] = {}
        (self._ranks_port,) = free_ports(1)
        self._leader = ""  # the uid of the pod that the ranks server's service selects

    async def run(self) -> None:
        """Until cancelled; then all is killed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_service, self._ranks_port, self._port_of_leader)
                await self._look_again()
        finally:
            for pod in self._pods.values():
                if pod.process is not None:
                    pod.process.kill()
                    pod.process.wait()

    async def _look_again(self) -> None:
        while True:
            try:
                await self._look()
            except TierUnavailable:
                # The API server is away, or somebody else changed what was to be changed.
                await trio.sleep(_LOOK_SECONDS)
            await trio.sleep(_LOOK_SECONDS)

    async def _port_of_leader(self) -> int | None:
        leader = self._pods.get(self._leader)
        return None if leader is None else leader.ports[_RANKS_PORT]

    def port(self, app: str, port: int) -> int:
        """Where a program listens that believes to listen on ``port``."""
        (found,) = {pod.ports[port] for pod in self._pods.values() if pod.spec["containers"][0]["name"] == app}
        return found

    @property
    def ranks_server(self) -> str:
        """Where its service leads to the ranks server that was elected."""
        return f"127.0.0.1:{self._ranks_port}"

    def log(self, app: str) -> Path:
        """What a program says."""
        return self._directory / f"{app}.log"

    def kill(self, app: str) -> None:
        """Ends a program as a crash does, and it stays away."""
        for pod in self._pods.values():
            if pod.process is not None and pod.spec["containers"][0]["name"] == app:
                pod.process.kill()
                pod.process.wait()
                pod.next_start = math.inf

    async def _look(self) -> None:
        found = (await self._cluster.writer.read("/api/v1/pods"))["items"]
        mine = {
            one["metadata"]["uid"]: one
            for one in found
            if one["spec"].get("nodeName") == OWN_NODE and "app" in (one["metadata"].get("labels") or {})
        }
        leaders = [uid for uid, one in mine.items() if one["metadata"]["labels"].get(LABEL) == LEADS]
        self._leader = leaders[0] if leaders else ""
        for uid in self._pods.keys() - mine.keys():
            await self._end(self._pods.pop(uid))
        for uid, one in mine.items():
            if "deletionTimestamp" in one["metadata"]:
                await self._forget(uid, one)
            elif uid not in self._pods:
                await self._prepare(uid, one)
            else:
                await self._keep(self._pods[uid])

    async def _prepare(self, uid: str, one: Mapping[str, Any]) -> None:
        path = f"/api/v1/namespaces/{one['metadata']['namespace']}/pods/{one['metadata']['name']}"
        (container,) = one["spec"]["containers"]
        declared = [port["containerPort"] for port in container.get("ports", ())]
        ports = dict(zip(declared, free_ports(len(declared)), strict=True))
        pod = _Pod(uid, path, one["spec"], one["metadata"], self._directory / uid, ports)
        try:
            await self._fill(pod, one["metadata"]["namespace"])
        except Gone:
            return  # as kubelet does: it waits for what a pod mounts
        self._pods[uid] = pod

    async def _keep(self, pod: _Pod) -> None:
        ended = pod.process is None or pod.process.poll() is not None
        if ended and trio.current_time() >= pod.next_start:
            self._start(pod)
        (container,) = pod.spec["containers"]
        is_ready = await self._answers(pod, container["readinessProbe"])
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True" if is_ready or kind == "Initialized" else "False"}
                for kind in ("Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": container["name"], "image": container["image"], "imageID": "", "ready": is_ready,
                    "started": True, "restartCount": max(0, pod.restarts), "state": {"running": {}},
                }
            ],
            "podIP": "127.0.0.1",
        }  # fmt: skip
        if status != pod.told:
            pod.told = status
            await self._cluster.writer.merge(f"{pod.path}/status", {"status": {**status, "startTime": now}})

    def _start(self, pod: _Pod) -> None:
        pod.restarts += 1
        pod.next_start = trio.current_time() + _RESTART_SECONDS
        (container,) = pod.spec["containers"]
        volumes = {one["mountPath"]: pod.directory / one["name"] for one in container["volumeMounts"]}
        told = {f"$({one['name']})": _field(pod, one) for one in container.get("env", ())}
        words = (*container["command"], *container["args"])
        command = [_with_variables(self._moved(word, pod.ports), told) for word in words]
        wanted = Container(container["name"], container["image"], command, volumes)
        wanted.kubeconfig = pod.directory / "kubeconfig"
        wanted.ranks_server = self.ranks_server
        wanted.environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._cluster.server.port),
        }
        pod.process = start_program(self._runtime(wanted), self.log(container["name"]))

    async def _answers(self, pod: _Pod, probe: Mapping[str, Any]) -> bool:
        asked = probe.get("httpGet") or probe["tcpSocket"]
        (container,) = pod.spec["containers"]
        (declared,) = [one["containerPort"] for one in container["ports"] if one["name"] == asked["port"]]
        with trio.move_on_after(_PROBE_SECONDS):
            try:
                async with await trio.open_tcp_stream("127.0.0.1", pod.ports[declared]) as stream:
                    if "path" not in asked:
                        return True
                    await stream.send_all(f"GET {asked['path']} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
                    return b" 200 " in await stream.receive_some(1024)
            except (OSError, trio.BrokenResourceError):
                return False
        return False

    async def _end(self, pod: _Pod) -> None:
        if pod.process is None or pod.process.poll() is not None:
            return
        pod.process.terminate()
        with trio.move_on_after(_STOP_SECONDS) as patience:
            while pod.process.poll() is None:  # noqa: ASYNC110 - nobody announces it
                await trio.sleep(_LOOK_SECONDS)
        if patience.cancelled_caught:
            pod.process.kill()
            pod.process.wait()

    async def _forget(self, uid: str, one: Mapping[str, Any]) -> None:
        if uid in self._pods:
            await self._end(self._pods.pop(uid))
        path = f"/api/v1/namespaces/{one['metadata']['namespace']}/pods/{one['metadata']['name']}"
        await self._cluster.server.delete(path)

    async def _fill(self, pod: _Pod, namespace: str) -> None:
        """Raises Gone when something that is to be mounted is not there."""
        objects = f"/api/v1/namespaces/{namespace}"
        for volume in pod.spec["volumes"]:
            directory = pod.directory / volume["name"]
            directory.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                found = await self._cluster.writer.read(f"{objects}/configmaps/{volume['configMap']['name']}")
                for name, text in found["data"].items():
                    (directory / name).write_text(self._moved(text, pod.ports))
            elif "secret" in volume:
                found = await self._cluster.writer.read(f"{objects}/secrets/{volume['secret']['secretName']}")
                for name, encoded in found["data"].items():
                    (directory / name).write_bytes(base64.b64decode(encoded))
            elif "projected" in volume:
                await self._give_token(pod, f"{objects}/serviceaccounts/{pod.spec['serviceAccountName']}", directory)

    async def _give_token(self, pod: _Pod, account: str, directory: Path) -> None:
        made = await self._cluster.writer.create(f"{account}/token", {"spec": {"expirationSeconds": 3600}})
        token = made["status"]["token"]
        authority = self._cluster.server.directory / "certs" / "apiserver.crt"
        (directory / "token").write_text(token)
        (directory / "ca.crt").write_bytes(authority.read_bytes())
        config = self._cluster.server.kubeconfig
        config["users"] = [{"name": "a", "user": {"token": token}}]
        (pod.directory / "kubeconfig").write_text(yaml.safe_dump(config))

    def _moved(self, text: str, ports: Mapping[int, int]) -> str:
        for declared, port in ports.items():
            text = text.replace(f":{declared}", f":{port}")
        return text


def _field(pod: _Pod, variable: Mapping[str, Any]) -> str:
    """What a variable says of its pod."""
    return str(pod.metadata[variable["valueFrom"]["fieldRef"]["fieldPath"].removeprefix("metadata.")])


def _with_variables(word: str, told: Mapping[str, str]) -> str:
    for name, value in told.items():
        word = word.replace(name, value)
    return word
