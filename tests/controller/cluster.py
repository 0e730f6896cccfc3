"""A cluster for the controller: a real API server with our CRD, and a test in place of Kubernetes' other parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
import yaml
from kubernetes.client import ApiClient

from controller.driver import names
from controller.driver.images import KEYS
from controller.local.kube import ApiServer
from controller.local.programs import TOOLS
from controller.reconciling.certificates import decoded
from controller.reconciling.reconciler import Task
from controller.reconciling.removing import CLEAN_SECONDS
from controller.reconciling.server import Serving, serve_controller
from controller.reconciling.world import CONFIGURATIONS
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import TierUnavailable
from tests.controller.configurations import EXAMPLE, SETTINGS
from tests.harness.waiting import until

CRD: dict[str, Any] = yaml.safe_load((TOOLS.parent / "crd/checkpointconfiguration.yaml").read_text())
NAMESPACE = f"/api/v1/namespaces/{SETTINGS.namespace}"
DAEMONSETS = f"/apis/apps/v1/namespaces/{SETTINGS.namespace}/daemonsets"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SETTINGS.namespace}/leases"
EVENTS = "/api/v1/namespaces/default/events"
LABELS = EXAMPLE["spec"]["nodeSelector"]


DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
JOBSETS: dict[str, Any] = {
    "metadata": {"name": names.JOBSETS},
    "spec": {
        "group": "jobset.x-k8s.io",
        "names": {"kind": "JobSet", "plural": "jobsets"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha2",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""The least that may have that name."""


class Cluster:
    """With an API client that may do all."""

    def __init__(self, server: ApiServer, api: ApiClient) -> None:
        self.server = server
        self.api = api
        self.writer = Writer(api, 1000)

    async def install_crd(self) -> None:
        """As ``kubectl apply -f crd/`` does; returns when the kind is served."""
        await self._create(DEFINITIONS, CRD)

        async def is_served() -> bool:
            try:
                await self.writer.read(CONFIGURATIONS)
            except (Gone, TierUnavailable):
                return False
            return True

        await until(is_served)

    async def install_jobsets(self) -> None:
        """The definition alone."""
        await self._create(DEFINITIONS, JOBSETS)

    async def prepare(self) -> None:
        """The CRD, JobSets', the namespace, the images, and three nodes; nothing else, whatever was there."""
        await self.install_crd()
        await self.install_jobsets()
        for collection in (
            CONFIGURATIONS,
            DAEMONSETS,
            f"{NAMESPACE}/configmaps",
            f"{NAMESPACE}/secrets",
            LEASES,
            f"{NAMESPACE}/pods",
            "/api/v1/nodes",
            EVENTS,
        ):
            for one in (await self.writer.read(collection))["items"]:
                await self._remove(f"{collection}/{one['metadata']['name']}")
        await self._create("/api/v1/namespaces", {"metadata": {"name": SETTINGS.namespace}})
        await self.give_images()
        for name in "abc":
            await self.writer.create("/api/v1/nodes", {"metadata": {"name": name, "labels": LABELS}})

    async def _create(self, collection: str, manifest: Mapping[str, Any]) -> None:
        try:
            await self.writer.create(collection, manifest)
        except Clash:  # an earlier test has
            return

    async def _remove(self, path: str) -> None:
        try:
            await self.writer.merge(path, {"metadata": {"finalizers": None}})
        except Gone:
            return
        if not await self.is_gone(path):  # as one is that was being deleted
            await self.server.delete(path)

    async def give_images(self, **changes: str) -> None:
        """The config map that names them."""
        data = {key: f"registry.example/{key}:1" for key in KEYS} | changes
        await self.writer.apply(
            f"{NAMESPACE}/configmaps/checkpoint-image-config",
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "checkpoint-image-config"}, "data": data},
        )

    async def configure(self, name: str = "default", **spec: Any) -> Mapping[str, Any]:
        """Makes a configuration, or changes fields of it."""
        path = f"{CONFIGURATIONS}/{name}"
        try:
            await self.writer.read(path)
        except Gone:
            body = {**EXAMPLE, "metadata": {"name": name}, "spec": EXAMPLE["spec"] | spec}
            return await self.writer.create(CONFIGURATIONS, body)
        return await self.writer.merge(path, {"spec": spec})

    async def configuration(self, name: str = "default") -> Mapping[str, Any]:
        return await self.writer.read(f"{CONFIGURATIONS}/{name}")

    async def conditions(self, name: str = "default") -> dict[str, tuple[str, str]]:
        """Their status and reason, by type."""
        found = (await self.configuration(name)).get("status") or {}
        return {one["type"]: (one["status"], one["reason"]) for one in found.get("conditions") or ()}

    async def until_condition(
        self, kind: str, status: str, reason: str, name: str = "default", *, begins: str = ""
    ) -> str:
        """Waits for it, with a message that begins so; gives that."""
        message: str = ""

        async def so() -> bool:
            nonlocal message
            for one in ((await self.configuration(name)).get("status") or {}).get("conditions") or ():
                if (one["type"], one["status"], one["reason"]) == (kind, status, reason):
                    message = str(one["message"])
                    return message.startswith(begins)
            return False

        await until(so)
        return message

    async def daemonset(self, name: str = "default") -> Mapping[str, Any]:
        """Waits for that of a configuration, of its present generation or a later one."""
        path = f"{DAEMONSETS}/multitier-driver-{(await self.configuration(name))['metadata']['uid']}"
        return await self.until_found(path, lambda _: True)

    async def certificates(self, name: str = "default") -> dict[str, bytes]:
        """What the Secrets of a configuration's nodes hold, together."""
        uid = (await self.configuration(name))["metadata"]["uid"]
        found: dict[str, bytes] = {}
        for secret in (await self.writer.read(f"{NAMESPACE}/secrets"))["items"]:
            if secret["metadata"]["name"] in names.certificates_names(uid):
                found |= decoded(secret)
        return found

    async def until_found(self, path: str, fits: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Waits until an object is there and is as it should be."""
        found: list[Mapping[str, Any]] = []

        async def so() -> bool:
            try:
                found[:] = [await self.writer.read(path)]
            except Gone:
                return False
            return fits(found[0])

        await until(so)
        return found[0]

    async def is_gone(self, path: str) -> bool:
        try:
            await self.writer.read(path)
        except Gone:
            return True
        return False

    async def until_gone(self, path: str) -> None:
        await until(lambda: self.is_gone(path))

    async def run_pods(self, name: str = "default", ready: int = 3, path: str = "") -> None:
        """Says of a daemonset, a configuration's or the one at a path, what its controller and kubelets would."""
        found = await (self.until_found(path, lambda _: True) if path else self.daemonset(name))
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "desiredNumberScheduled": 3,
            "currentNumberScheduled": 3,
            "updatedNumberScheduled": 3,
            "numberReady": ready,
            "numberMisscheduled": 0,
        }
        await self.writer.merge(path_of(found) + "/status", {"status": status})

    async def let_nodes_answer(self) -> None:
        """What a kubelet does by its leases: what is wrong with a new node is taken away."""
        for name in "abc":
            await self.writer.merge(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})

    async def remove_daemonset(self, path: str) -> None:
        """Waits until it is being deleted; then plays Kubernetes' garbage collector."""
        await self.until_found(path, lambda one: "deletionTimestamp" in one["metadata"])
        await self.writer.merge(path, {"metadata": {"finalizers": None}})
        await self.until_gone(path)

    async def run_pod(self, node: str, name: str = "default") -> str:
        """A driver pod on a node, which is not ready; gives its path. What is wrong with a new node is taken away."""
        await self.writer.merge(f"/api/v1/nodes/{node}", {"spec": {"taints": None}})
        uid = (await self.configuration(name))["metadata"]["uid"]
        pod = {
            "metadata": {"name": f"driver-{node}", "labels": {**names.APP, names.UID_LABEL: uid}},
            "spec": {"nodeName": node, "containers": [{"name": "x", "image": "x"}]},
        }
        await self.writer.create(f"{NAMESPACE}/pods", pod)
        return f"{NAMESPACE}/pods/driver-{node}"

    async def events(self, name: str = "default") -> list[str]:
        """Their reasons, oldest first."""
        found = (await self.writer.read(EVENTS))["items"]
        mine = [one for one in found if one["involvedObject"]["name"] == name]
        return [one["reason"] for one in sorted(mine, key=lambda one: int(one["metadata"]["resourceVersion"]))]

    async def until_event(self, reason: str, name: str = "default") -> None:
        async def so() -> bool:
            return reason in await self.events(name)

        await until(so)


def path_of(daemonset: Mapping[str, Any]) -> str:
    return f"{DAEMONSETS}/{daemonset['metadata']['name']}"


@asynccontextmanager
async def running_controller(
    api: ApiClient, identity: str = "one", clean_seconds: float = CLEAN_SECONDS, **serving: Any
) -> AsyncIterator[None]:
    """A controller, in this process, until the block is left."""
    task = Task(SETTINGS, "checkpoint-image-config", identity, clean_seconds)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_controller, api, Serving(task, 1000, **serving))
        yield
        nursery.cancel_scope.cancel()
