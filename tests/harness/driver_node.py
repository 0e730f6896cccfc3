"""Kubelet of the node ``own`` for the pods of the driver and its cleaner: their programs really run, as containers.

What is real: the pods that Kubernetes' daemonset controller makes and deletes, what their config map and Secrets say,
their containers (csi/local/pod.py), their readiness, which is that all three answer. What is not: the two sidecars do
not run, directories of the host are below one of the test's, and ports are free ones.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from controller.driver import names
from controller.local.kwok import OWN_NODE, KwokCluster
from controller.writing import Gone
from csi.local.kubelet import Kubelet
from csi.local.pod import DriverPod
from csi.services import DRIVER_NAME
from fuse_tier.errors import TierUnavailable
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.processes import Family

_LOOK_SECONDS = 0.1
_STOP_SECONDS = 10.0


@dataclass
class _Driver:
    pod: DriverPod
    is_told: bool = False


class DriverNode:
    """``place`` is a directory whose mounts all containers see; ``code`` has what runs, by the tag of an image."""

    def __init__(
        self, cluster: KwokCluster, place: Path, logs: Path, ranks_server: str, code: Mapping[str, Path]
    ) -> None:
        self._cluster = cluster
        self._place = place
        self._logs = logs
        self._code = code
        self.kubelet = Kubelet(place / "kubelet", str(place / f"kubelet/plugins/{DRIVER_NAME}/csi.sock"))
        self.run_directory, self.ram_directory = place / "run/fuse-tier", place / "lib/fuse-tier"
        control, bulk, metrics = free_ports(3)
        self._moved = {
            "${NODE_NAME}": OWN_NODE,
            f"${{HOST_IP}}:{names.CONTROL_PORT}": f"127.0.0.1:{control}",
            f"${{HOST_IP}}:{names.BULK_PORT}": f"127.0.0.1:{bulk}",
            f"${{HOST_IP}}:{names.WORKER_METRICS_PORT}": f"127.0.0.1:{metrics}",
            f"{names.RANKS_SERVICE}.gke-managed-checkpointing.svc:19346": ranks_server,
            names.DRIVER_DIRECTORY: str(self.run_directory),
            names.RAM_DIRECTORY: str(self.ram_directory),
        }
        self.drivers: dict[str, _Driver] = {}  # by their pod's uid
        self.seen: list[str] = []
        """The images' tags of all driver pods, in the order in which they came."""
        self._cleaners: dict[str, Family] = {}

    async def run(self) -> None:
        """Until cancelled; then all is killed."""
        try:
            while True:
                try:
                    await self._look()
                except TierUnavailable:
                    await trio.sleep(_LOOK_SECONDS)  # somebody else changed what was to be changed
                await trio.sleep(_LOOK_SECONDS)
        finally:
            with trio.CancelScope(shield=True):
                for driver in self.drivers.values():
                    await driver.pod.clean_up()
                for cleaner in self._cleaners.values():
                    await cleaner.kill()

    async def _look(self) -> None:
        for one in await self._cluster.pods("gke-managed-checkpointing"):
            metadata, labels = one["metadata"], one["metadata"].get("labels") or {}
            if one["spec"].get("nodeName") != OWN_NODE:
                continue
            if names.UID_LABEL in labels:
                await (self._end(one) if "deletionTimestamp" in metadata else self._keep(one))
            elif names.CLEANS_LABEL in labels:
                await (self._end(one) if "deletionTimestamp" in metadata else self._clean(one))

    async def _keep(self, one: Mapping[str, Any]) -> None:
        uid = one["metadata"]["uid"]
        if uid not in self.drivers:
            await self._start(one)
            return
        driver = self.drivers[uid]
        said = [driver.pod.families[name].output() for name in ("fuse", "replication-worker")]
        if driver.is_told or not all("is ready" in text for text in said) or not await self.kubelet.is_ready():
            return
        await self._tell_ready(one)
        driver.is_told = True

    async def _start(self, one: Mapping[str, Any]) -> None:
        uid, configuration = one["metadata"]["uid"], one["metadata"]["labels"][names.UID_LABEL]
        directory = self._place / "pods" / uid
        try:
            config = await self._fill(directory, configuration)
        except Gone:
            return  # as kubelet does: it waits for what a pod mounts
        pod = DriverPod(uid, config, self.kubelet.socket, self.kubelet.directory, self._logs)
        tag = one["spec"]["containers"][2]["image"].rpartition(":")[2]
        self.seen.append(tag)
        for family in pod.families.values():
            family.environment |= {"PYTHONPATH": str(self._code[tag]), "PYTHONSAFEPATH": "1"}
        self.drivers[uid] = _Driver(pod)
        pod.start()

    async def _fill(self, directory: Path, configuration: str) -> Path:
        objects, tls = "/api/v1/namespaces/gke-managed-checkpointing", directory / "tls"
        config_map = await self._cluster.writer.read(f"{objects}/configmaps/{names.daemonset_name(configuration)}")
        tls.mkdir(parents=True, exist_ok=True)
        for name in names.certificates_names(configuration):
            secret = await self._cluster.writer.read(f"{objects}/secrets/{name}")
            for file, encoded in (secret.get("data") or {}).items():
                (tls / file).write_bytes(base64.b64decode(encoded))
        text = config_map["data"]["node.yaml"].replace(names.TLS_DIRECTORY, str(tls))
        for before, after in self._moved.items():
            text = text.replace(before, after)
        config = directory / "node.yaml"
        config.write_text(text)
        return config

    async def _clean(self, one: Mapping[str, Any]) -> None:
        uid = one["metadata"]["uid"]
        told = self._place / "pods" / uid
        if uid not in self._cleaners:
            (container,) = one["spec"]["containers"]
            moved = {
                f"/host{names.DRIVER_DIRECTORY}": str(self.run_directory),
                f"/host{names.RAM_DIRECTORY}": str(self.ram_directory),
                f"/host{names.KUBELET}": str(self.kubelet.directory),
                "/tmp/clean": str(told),  # noqa: S108 - what the manifest says
            }
            arguments = list(container["args"])
            for before, after in moved.items():
                arguments = [one.replace(before, after) for one in arguments]
            family = Family("the cleaner", ["-m", "csi.cleaning.cli", *arguments], self._logs / "cleaner.log")
            family.start()
            self._cleaners[uid] = family
        elif told.exists():
            await self._tell_ready(one)

    async def _tell_ready(self, one: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        containers = [
            {
                "name": container["name"], "image": container["image"], "imageID": "", "ready": True, "started": True,
                "restartCount": 0, "state": {"running": {}},
            }
            for container in one["spec"]["containers"]
        ]  # fmt: skip
        conditions = [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")]
        status = {
            "phase": "Running", "conditions": conditions, "containerStatuses": containers, "podIP": "127.0.0.1",
            "startTime": now,
        }  # fmt: skip
        await self._cluster.writer.merge(f"{_path_of(one)}/status", {"status": status})

    async def _end(self, one: Mapping[str, Any]) -> None:
        uid = one["metadata"]["uid"]
        if (driver := self.drivers.pop(uid, None)) is not None:
            await driver.pod.kill()
            await driver.pod.clean_up()
        if (cleaner := self._cleaners.pop(uid, None)) is not None:
            await cleaner.terminate(_STOP_SECONDS)
        await self._cluster.server.delete(_path_of(one))


def _path_of(one: Mapping[str, Any]) -> str:
    return f"/api/v1/namespaces/{one['metadata']['namespace']}/pods/{one['metadata']['name']}"
