"""A whole cluster: a real API server, Kubernetes' own controllers and scheduler, and nodes that kwok plays.

Pods of kwok's nodes become Running and Ready, and nothing runs in them. The nodes have the labels and the taint that
``examples/checkpointconfiguration.yaml`` is made for, so that only the driver comes to them. One node more, ``own``,
has neither: what becomes of its pods is for a test to say (own_node.py).
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
import yaml

from controller.local.kube import ApiServer, running_api_server, start_program
from controller.local.programs import program
from controller.writing import Gone, Writer
from fuse_tier.errors import TierUnavailable
from fuse_tier.localcluster.waiting import until

OWN_NODE = "own"
LABELS = {"cloud.google.com/gke-nodepool": "training"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
_PLAYED = {"kwok.x-k8s.io/node": "fake"}
_RATE = ("--kube-api-qps=500", "--kube-api-burst=1000")  # by default they make twenty pods a second
# What a cluster has whose pods come and go. The one that looks after nodes lets them be silent: see _give_own_node.
_CONTROLLERS = (
    "daemonset-controller", "deployment-controller", "replicaset-controller", "statefulset-controller",
    "job-controller", "namespace-controller", "garbage-collector-controller", "serviceaccount-controller",
    "resourcequota-controller", "disruption-controller", "node-lifecycle-controller",
)  # fmt: skip


@dataclass(frozen=True)
class KwokCluster:
    """A running one. ``writer`` has all rights."""

    server: ApiServer
    writer: Writer
    kubeconfig: Path
    directory: Path

    async def add_nodes(self, *names: str) -> None:
        """Nodes that kwok plays; returns when they are ready for pods."""
        for name in names:
            await self.make_node(name)
        await self.until_ready(*names)

    async def make_node(self, name: str, **labels: str) -> None:
        """A node that kwok plays, with labels besides."""
        all_labels = {**LABELS, "kubernetes.io/hostname": name, **labels}
        metadata = {"name": name, "labels": all_labels, "annotations": _PLAYED}
        await self.writer.create("/api/v1/nodes", {"metadata": metadata, "spec": {"taints": [TAINT]}})

    async def remove_nodes(self, *names: str) -> None:
        """As a machine that is taken away."""
        for name in names:
            await self.writer.delete(f"/api/v1/nodes/{name}")

    async def until_ready(self, *names: str) -> None:
        """Returns when pods are let onto the nodes."""

        async def are_ready() -> bool:
            found = [await self.writer.read(f"/api/v1/nodes/{name}") for name in names]
            return not any(
                taint["key"].startswith("node.kubernetes.io/")
                for node in found
                for taint in node["spec"].get("taints", ())
            )

        await until(are_ready)

    async def pods(self, namespace: str) -> list[Mapping[str, Any]]:
        """All of a namespace."""
        found = await self.writer.read(f"/api/v1/namespaces/{namespace}/pods")
        return list(found["items"])

    async def is_gone(self, path: str) -> bool:
        """Whether there is no such object."""
        try:
            await self.writer.read(path)
        except Gone:
            return True
        return False


@asynccontextmanager
async def running_kwok_cluster(directory: Path, audits: bool = False) -> AsyncIterator[KwokCluster]:
    """Runs one until the block is left. ``audits``: see ApiServer."""
    async with running_api_server(directory, has_accounts=True, audits=audits) as server:
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(server.kubeconfig))
        commands = {
            "kube-controller-manager": [
                f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0", *_RATE,
                f"--controllers={','.join(_CONTROLLERS)}", "--node-monitor-grace-period=10h",
            ],
            "kube-scheduler": [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0", *_RATE],
            "kwok": [
                f"--kubeconfig={kubeconfig}",
                "--manage-nodes-with-annotation-selector=" + ",".join(f"{key}={_PLAYED[key]}" for key in _PLAYED),
            ],
        }  # fmt: skip
        running: list[subprocess.Popen[bytes]] = []
        try:
            for name, arguments in commands.items():
                running.append(start_program([program(name), *arguments], directory / f"{name}.out"))
            with server.client as api:
                cluster = KwokCluster(server, Writer(api, 1000), kubeconfig, directory)
                await _give_own_node(cluster)
                yield cluster
        finally:
            for process in running:
                process.kill()
            with trio.CancelScope(shield=True):
                for process in running:
                    await trio.to_thread.run_sync(process.wait)


async def _give_own_node(cluster: KwokCluster) -> None:
    """A node whose kubelet is the test: it says once that it is ready."""

    async def is_made() -> bool:
        try:
            metadata = {"name": OWN_NODE, "labels": {"kubernetes.io/hostname": OWN_NODE}}
            await cluster.writer.create("/api/v1/nodes", {"metadata": metadata})
        except TierUnavailable:
            return False
        return True

    await until(is_made)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    room = {"cpu": "8", "memory": "64Gi", "pods": "100"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
    status = {"capacity": room, "allocatable": room, "conditions": [ready]}
    await cluster.writer.merge(f"/api/v1/nodes/{OWN_NODE}/status", {"status": status})
    await cluster.until_ready(OWN_NODE)
