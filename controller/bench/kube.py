"""How soon the controller acts, and what it costs where there are a thousand nodes: rows of ``fuse-tier bench``.

It is a process of its own, as it is deployed, at a real API server with Kubernetes' own controllers and scheduler;
nodes and pods are kwok's. What it asks is counted by the API server (its audit log).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio
import yaml

from controller.driver import names
from controller.driver.images import KEYS
from controller.local.kwok import LABELS, TAINT, KwokCluster, running_kwok_cluster
from controller.local.programs import TOOLS, lacking
from controller.reconciling.world import CONFIGURATIONS
from controller.watching import Collection, connect
from controller.writing import Gone
from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.errors import TierUnavailable
from fuse_tier.localcluster.node import until_so
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.processes import Family, kill_all, peak_megabytes
from fuse_tier.localcluster.waiting import until

_NODES: Final = 1000
_CONFIGURATIONS: Final = 50
_IDLE_SECONDS: Final = 60.0
_SETTLED_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 200.0
_RECONCILE_LIMIT_SECONDS: Final = 1.0
_MEMORY_LIMIT_MB: Final = 200.0
_NAMESPACE: Final = "gke-managed-checkpointing"
_CORE: Final = f"/api/v1/namespaces/{_NAMESPACE}"
_PODS: Final = f"{_CORE}/pods"
_DAEMONSETS: Final = f"/apis/apps/v1/namespaces/{_NAMESPACE}/daemonsets"
_POOL: Final = "bench-pool"
_CRD: Final = TOOLS.parent / "crd/checkpointconfiguration.yaml"

Object = Mapping[str, Any]


class _Watched:
    """One collection as it changes, from when it is followed. ``fits`` says which objects count."""

    def __init__(self, path: str, fits: Callable[[Object], bool]) -> None:
        self.path = path
        self._fits = fits
        self.since: dict[str, float] = {}  # by uid: since when an object has counted
        self._changed = trio.Event()

    def seen(self, found: Object) -> None:
        if self._fits(found):
            self.since.setdefault(found["metadata"]["uid"], time.perf_counter())
        else:
            self.since.pop(found["metadata"]["uid"], None)
        self._changed.set()

    def lost(self, key: str) -> None:
        self.since.pop(key, None)
        self._changed.set()

    async def until(self, count: int) -> float:
        """Waits until so many count; gives since when."""
        with trio.fail_after(_PATIENCE_SECONDS):
            while len(self.since) < count:
                self._changed = trio.Event()
                await self._changed.wait()
        return sorted(self.since.values())[count - 1]


@dataclass(frozen=True)
class _Site:
    cluster: KwokCluster
    nursery: trio.Nursery

    @asynccontextmanager
    async def controller(self) -> AsyncIterator[Family]:
        """Runs it, as deploy/multitier/controller does, until the block is left."""
        directory, (port,) = self.cluster.directory, free_ports(1)
        kubeconfig = directory / "audited"
        kubeconfig.write_text(yaml.safe_dump(self.cluster.server.kubeconfig_of("audited")))
        arguments = ["--leader-election=true", "--enable-uptime-controller=true"]
        arguments += [f"--http-endpoint=127.0.0.1:{port}", f"--kubeconfig-path={kubeconfig}"]
        command = ["-m", "controller.reconciling.cli", *arguments]
        family = Family("the controller", command, directory / "controller.log")
        family.start()

        async def is_ready() -> bool:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"GET /readyz HTTP/1.0\r\n\r\n")
                    return b" 200 " in await stream.receive_some(1024)
            except (OSError, trio.BrokenResourceError):
                return False

        try:
            await until_so(family, is_ready)
            yield family
        finally:
            with trio.CancelScope(shield=True):
                await kill_all([family])

    async def make_nodes(self, pools: int) -> None:
        """A thousand, in so many pools."""
        async with trio.open_nursery() as nursery:
            for number in range(_NODES):
                nursery.start_soon(self._make_node, f"gpu-{number}", str(number % pools))

    async def _make_node(self, name: str, pool: str) -> None:
        await self.cluster.make_node(name, **{_POOL: pool})

    async def configure(self, pool: int) -> float:
        """Makes a configuration for one pool; gives when it was applied."""
        spec = {
            "cloudStorageBucketName": "my-checkpoints",
            "inMemoryVolumeSize": "64Gi",
            "nodeSelector": {**LABELS, _POOL: str(pool)},
            "tolerations": [{"key": TAINT["key"], "operator": "Exists"}],
        }
        body = {
            "apiVersion": f"{names.GROUP}/v1",
            "kind": "CheckpointConfiguration",
            "metadata": {"name": f"pool-{pool}"},
            "spec": spec,
        }
        begun = time.perf_counter()
        await self.cluster.writer.create(CONFIGURATIONS, body)
        return begun

    async def watched(self, path: str, fits: Callable[[Object], bool] = lambda _: True) -> _Watched:
        """Follows a collection from now on."""
        found = _Watched(path, fits)
        api = connect(str(self.cluster.kubeconfig), "bench")
        await self.nursery.start(Collection(api, path, found).follow)
        return found


@asynccontextmanager
async def _site(directory: Path) -> AsyncIterator[_Site]:
    """A cluster in which all is installed but the controller's deployment."""
    async with running_kwok_cluster(directory / "kube", audits=True) as cluster, trio.open_nursery() as nursery:
        writer = cluster.writer
        definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await writer.create(definitions, yaml.safe_load(_CRD.read_text()))
        await writer.create("/api/v1/namespaces", {"metadata": {"name": _NAMESPACE}})
        await writer.create(f"{_CORE}/serviceaccounts", {"metadata": {"name": "gke-checkpointing-multitier-node"}})
        images = {"metadata": {"name": "checkpoint-image-config"}, "data": {key: f"r/{key}:1" for key in KEYS}}
        await writer.create(f"{_CORE}/configmaps", images)

        async def is_served() -> bool:
            try:
                await writer.read(CONFIGURATIONS)
            except (Gone, TierUnavailable):
                return False
            return True

        await until(is_served)
        yield _Site(cluster, nursery)
        nursery.cancel_scope.cancel()


def _is_protected(configuration: Object) -> bool:
    return names.FINALIZER in configuration["metadata"].get("finalizers", ())


def _is_ready(found: Object) -> bool:
    conditions = (found.get("status") or {}).get("conditions") or ()
    return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)


async def _reconcile(directory: Path) -> Figure:
    """From the call that applies a configuration until its finalizer stands, which is written first."""
    async with _site(directory) as site, site.controller():
        protected = await site.watched(CONFIGURATIONS, _is_protected)
        made = await site.watched(_DAEMONSETS)
        first, whole = [], []
        for run in range(RUNS + 1):
            await site.cluster.make_node(f"gpu-{run}", **{_POOL: str(run)})
            begun = await site.configure(run)
            first.append(await protected.until(run + 1) - begun)
            whole.append(await made.until(run + 1) - begun)
        told = f"until its daemonset is there {statistics.median(whole[1:]):.2f} s"
        return Figure(statistics.median(first[1:]), _RECONCILE_LIMIT_SECONDS, told)


async def _thousand_nodes(directory: Path) -> Figure:
    """From the call that applies a configuration until each node has its driver's pod."""
    async with _site(directory) as site, site.controller():
        await site.make_nodes(pools=1)
        made, pods = await site.watched(_DAEMONSETS), await site.watched(_PODS)
        begun = await site.configure(0)
        daemonset = await made.until(1)
        return Figure(await pods.until(_NODES) - begun, daemonset - begun)


async def _requests_when_idle(directory: Path) -> Figure:
    """In a minute in which nothing changes: those that are no watch and not about the lease, beside all others."""
    async with _site(directory) as site, site.controller():
        await site.make_nodes(pools=1)
        ready_pods, ready = await site.watched(_PODS, _is_ready), await site.watched(CONFIGURATIONS, _is_ready)
        await site.configure(0)
        await ready_pods.until(_NODES)
        await ready.until(1)
        await trio.sleep(_SETTLED_SECONDS)
        log = site.cluster.server.directory / "audit.log"
        before = len(log.read_text().splitlines())
        await trio.sleep(_IDLE_SECONDS)
        asked = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    counted = [one for one in asked if one["verb"] != "watch" and one["objectRef"]["resource"] != "leases"]
    per_minute = 60 / _IDLE_SECONDS
    return Figure(len(counted) * per_minute, (len(asked) - len(counted)) * per_minute)


async def _memory(directory: Path) -> Figure:
    """With a thousand nodes and fifty configurations, all of them ready."""
    async with _site(directory) as site, site.controller() as controller:
        await site.make_nodes(pools=_CONFIGURATIONS)
        ready_pods, ready = await site.watched(_PODS, _is_ready), await site.watched(CONFIGURATIONS, _is_ready)
        for pool in range(_CONFIGURATIONS):
            await site.configure(pool)
        await ready_pods.until(_NODES)
        await ready.until(_CONFIGURATIONS)
        return Figure(peak_megabytes(controller.pid), _MEMORY_LIMIT_MB)


def _lacks() -> str:
    return lacking() or ("" if _CRD.exists() else f"needs {_CRD}, of a checkout of the source")


ROWS: Final = (
    Row("kube.reconcile", "s", "limit", _reconcile, lacks=_lacks),
    Row("kube.nodes.1000", "s", "the controller's part: until its daemonset is there", _thousand_nodes, lacks=_lacks),
    Row("kube.requests.idle", "a minute", "watches and leases", _requests_when_idle, lacks=_lacks),
    Row("kube.memory", "MB", "limit", _memory, lacks=_lacks),
)
