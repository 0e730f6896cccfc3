"""From this version to the next with a job writing, by the commands of the guide; and then the driver is removed.

Kubernetes' own daemonset controller rolls the pods. On one node they really run: the first version from this tree,
the next one from a copy that calls itself so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import yaml

from controller.local.kwok import OWN_NODE
from csi.local.kubelet import PodVolume, begun, container, told_by
from csi.local.pod import shared_directory
from csi.services import DRIVER_NAME
from fuse_tier.emulator import running_emulator
from fuse_tier.localcluster.processes import mounts_below
from fuse_tier.mount.table import mount_at
from tests.e2e.manual import NAMESPACE, Site, running_site
from tests.harness.checkouts import ROOT, give_recorder
from tests.harness.driver_node import DriverNode
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.kube, pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(420)]
NEXT = "0.2.0"


@dataclass
class Deployed:
    site: Site
    node: DriverNode

    async def install(self, tag: str) -> None:
        """As the guide says, for a first time or to have another version."""
        shell = self.site.shell
        await shell.run("make clean-multitier")
        await shell.run(f"make multitier-images REPO_PATH=registry.example/project MULTITIER_TAG={tag}")
        await shell.run("kubectl apply -f crd/checkpointconfiguration.yaml")
        await shell.run("kubectl apply -k deploy/multitier/controller")

    async def start_job(self) -> PodVolume:
        """A pod with a volume, on the node that is real."""
        volumes = [{"name": "ckpt", "csi": {"driver": DRIVER_NAME}}]
        spec = {"nodeName": OWN_NODE, "containers": [{"name": "job", "image": "x"}], "volumes": volumes}
        body = {"metadata": {"name": "llama-0"}, "spec": spec}
        made = await self.site.cluster.writer.create("/api/v1/namespaces/default/pods", body)
        return await self.node.kubelet.start("llama-0", uid=made["metadata"]["uid"], user=4000, group="4242")

    async def until_rolled_out(self, tag: str) -> None:
        shell = self.site.shell
        uid = await shell.run("kubectl get cpc default -o jsonpath='{.metadata.uid}'")
        daemonset = f"daemonset/multitier-driver-{uid}"
        image = f"registry.example/project/fuse-tier-csi:{tag}"

        async def has_image() -> bool:
            found = await shell.run(f"kubectl get -n {NAMESPACE} {daemonset} -o jsonpath='{{..image}}'")
            shell.transcript.pop()
            return image in found

        await until(has_image, 120)
        await shell.run(f"kubectl rollout status -n {NAMESPACE} {daemonset} --timeout=120s")
        await shell.run("kubectl wait --for=condition=Ready cpc/default --timeout=60s")


@asynccontextmanager
async def deployed(directory: Path) -> AsyncIterator[Deployed]:
    code = {"v1": ROOT, "v2": directory / "next"}
    for package in ("fuse_tier", "csi", "controller"):
        shutil.copytree(ROOT / package, code["v2"] / package, ignore=shutil.ignore_patterns("__pycache__"))
    version = code["v2"] / "fuse_tier/__init__.py"
    version.write_text(f'"""The next version."""\n\n__version__ = "{NEXT}"\n')
    logs = directory / "driver"
    logs.mkdir()
    with tempfile.TemporaryDirectory(prefix="ft-up-") as place, shared_directory(Path(place)):
        async with running_site(directory) as site:
            site.shell.variables["CONTAINER_TOOL"] = give_recorder(site.shell.directory)
            node = DriverNode(site.cluster, Path(place), logs, site.node.ranks_server, code)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(node.run)
                    yield Deployed(site, node)
                    nursery.cancel_scope.cancel()
            finally:
                node.kubelet.clean_up()


async def test_a_job_writes_on_while_the_driver_is_upgraded_and_when_it_is_removed_nothing_is_left_on_the_node(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(
        # Of the controller, before there are configurations, and as it and the ranks server are replaced.
        "watch.refused", "api.unavailable", "certificates.not_issued", "reconcile.failed", "election.failed",
        "membership.coordinator_unavailable", "coordinator.node_gone",
        # Of a pod that is replaced while a job never rests, and of a node that cannot be cleaned yet.
        "vault.stands_in", "daemon.ended", "worker.ended", "worker.slow", "volume.daemon_lost", "snapshot.postponed",
        "cleaner.waits",
    )  # fmt: skip
    expected_logs.watch(tmp_path / "own")
    expected_logs.watch(tmp_path / "driver")
    async with running_emulator("my-checkpoints") as emulator, deployed(tmp_path) as here:
        shell = here.site.shell
        configuration = {
            "apiVersion": "checkpointing.gke.io/v1",
            "kind": "CheckpointConfiguration",
            "metadata": {"name": "default"},
            "spec": {
                "cloudStorageBucketName": emulator.bucket,
                "cloudStorageEndpoint": emulator.endpoint,
                "inMemoryVolumeSize": "64Mi",
                "replicas": 0,
                "nodeSelector": {"kubernetes.io/hostname": OWN_NODE},
            },
        }
        (shell.directory / "configuration.yaml").write_text(yaml.safe_dump(configuration))
        await here.install("v1")
        await shell.run("kubectl wait --for=condition=Established crd/checkpointconfigurations.checkpointing.gke.io")
        await shell.run("kubectl apply -f configuration.yaml")
        await shell.run("kubectl wait --for=condition=Ready cpc/default --timeout=120s")
        pod = await here.start_job()
        mount = mount_at(str(pod.target))
        with container(pod) as job:
            await begun(job)
            await here.install("v2")
            await here.until_rolled_out("v2")
            told = await told_by(job)
        assert told["errors"] == []
        assert told["steps"] > 0
        print(told)  # noqa: T201 - the figures, shown with -rP
        assert here.node.seen == ["v1", "v2"]
        assert any(f'"version": "{NEXT}+' in log.read_text() for log in (tmp_path / "driver").glob("*-fuse.log"))
        assert mount_at(str(pod.target)) == mount
        await shell.run(f"kubectl get pod -n {NAMESPACE}")
        await until_columns(here, "1")
        await shell.run("kubectl get cpc")

        await here.node.kubelet.end(pod)
        await here.site.cluster.server.delete("/api/v1/namespaces/default/pods/llama-0")
        await shell.run("kubectl delete checkpointconfigurations --all --timeout=120s")
        assert not here.node.run_directory.exists()
        assert not here.node.ram_directory.exists()
        assert mounts_below(here.node.run_directory.parents[1]) == [here.node.run_directory.parents[1]]
        await shell.run(f"kubectl delete namespace {NAMESPACE}")


async def until_columns(here: Deployed, volumes: str) -> None:
    async def so() -> bool:
        found = await here.site.shell.run("kubectl get cpc")
        here.site.shell.transcript.pop()
        return found.splitlines()[1].split()[4] == volumes

    await until(so, 90)
