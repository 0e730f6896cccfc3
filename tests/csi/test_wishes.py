"""What a person writes on a JobSet, all the way: API server, ranks server, nodes, kubelet's call, the pods' files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from controller.local.kube import ApiServer, running_api_server
from controller.ranks import server
from controller.ranks.book import RankBook
from controller.ranks.server import Serving, serve_ranks
from controller.writing import Writer
from csi.local.kubelet import Kubelet, PodVolume, Refused
from csi.services import DRIVER_NAME
from fuse_tier.checkpoints import Job
from fuse_tier.config import CoordinatorConfig
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalCluster
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.restarts import Wish
from tests.controller.cluster import DEFINITIONS, JOBSETS
from tests.controller.ranks.test_server import make_job, make_node, make_pod
from tests.csi.conftest import plugin_beside
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.kube, pytest.mark.fuse, pytest.mark.root]

NODES = ("node-0", "node-1")
JOB = Job("ml", "llama")
COLLECTION = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/ml/jobsets"
STEP = "checkpointing.gke.io/restore-step"


@dataclass
class JobSet:
    """A JobSet of two workers, with the test in place of the controllers of JobSets and of kubelet."""

    api: ApiServer
    writer: Writer
    book: RankBook
    cluster: LocalCluster
    kubelets: list[Kubelet]
    attempt: int = 0
    volumes: dict[int, PodVolume] = field(default_factory=dict)

    async def annotate(self, step: int | None) -> None:
        """Returns when the ranks server knows of it, as it does for as long as there are pods."""
        text = None if step is None else str(step)
        await self.writer.merge(f"{COLLECTION}/llama", {"metadata": {"annotations": {STEP: text}}})
        await until(lambda: self._wishes(step))

    async def _wishes(self, step: int | None) -> bool:
        wish = self.book.wish_of(JOB)
        return wish is None if step is None else isinstance(wish, Wish) and wish.step == step

    async def start(self) -> None:
        """Makes all pods, and returns when their volumes are there. Raises Refused."""
        for worker, (name, kubelet) in enumerate(zip(NODES, self.kubelets, strict=True)):
            uid = await make_pod(self.api, 0, worker, name, self.attempt)
            pod = f"llama-workers-0-{worker}-{self.attempt}"
            self.volumes[worker] = kubelet.stage(pod, uid=uid, namespace="ml")
        refusals: list[Refused] = []

        async def publish(worker: int) -> None:
            try:
                await self.kubelets[worker].publish(self.volumes[worker])
            except Refused as refusal:
                refusals.append(refusal)

        async with trio.open_nursery() as nursery:
            for worker in self.volumes:
                nursery.start_soon(publish, worker)
        if refusals:
            raise refusals[0]

    async def end(self) -> None:
        """Deletes all pods."""
        for worker, volume in self.volumes.items():
            await self.kubelets[worker].end(volume)
            await self.api.delete(f"/api/v1/namespaces/ml/pods/{volume.name}")
        self.attempt += 1

    async def save(self, *steps: int) -> None:
        for step in steps:
            for worker, volume in self.volumes.items():
                temporary = volume.target / f"{step}.tmp"
                temporary.mkdir()
                (temporary / "weights").write_text(f"rank {worker}, step {step}")
                temporary.rename(volume.target / str(step))
                await self.cluster[NODES[worker]].wait(f"ml/llama/{worker}", "peer", 60)

    def files(self) -> list[list[str]]:
        """Of each pod what is in its files, in the order of their steps."""
        targets = [volume.target for _, volume in sorted(self.volumes.items())]
        found = [sorted((int(step.name), step) for step in target.iterdir()) for target in targets]
        return [[(path / "weights").read_text() for _, path in steps] for steps in found]

    async def is_told(self, message: str) -> bool:
        """Whether an event on the JobSet says so."""
        found = (await self.writer.read("/api/v1/namespaces/ml/events"))["items"]
        return any(one["involvedObject"]["kind"] == "JobSet" and message in one["message"] for one in found)


def at(*steps: int) -> list[list[str]]:
    return [[f"rank {worker}, step {step}" for step in steps] for worker in range(2)]


@asynccontextmanager
async def ranks_server(api: ApiServer, address: str) -> AsyncIterator[None]:
    config = CoordinatorConfig.model_validate({"listen": address, "lease": 5.0})
    with api.client as client:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_ranks, client, Serving(DRIVER_NAME, config))
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def jobset(
    make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[JobSet]:
    book = RankBook()
    monkeypatch.setattr(server, "RankBook", lambda: book)  # so that the test can see what the server knows
    address = f"127.0.0.1:{free_ports(1)[0]}"
    cluster = await make_cluster(
        *NODES, bucket=False, tls=False, coordinator=False, start=False, settle="50ms", keep={"ram": 3}
    )
    for one in cluster:
        del one.config["peers"]
        one.config["coordinator"] = address
    for number in range(len(NODES)):
        (tmp_path / f"plugin-{number}").mkdir()
    async with running_api_server(tmp_path / "kube") as api:
        await api.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
        await api.create(DEFINITIONS, JOBSETS)
        with api.client as client:
            writer = Writer(client, 100)
            await until(lambda: is_served(writer))
            made = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "llama"}}
            await api.create(COLLECTION, made)
            for name in NODES:
                await make_node(api, name, "pool")
            await make_job(api, 0, 2)
            async with ranks_server(api, address):
                await cluster.start()
                async with (
                    plugin_beside(cluster[NODES[0]], tmp_path / "plugin-0", expected_logs) as first,
                    plugin_beside(cluster[NODES[1]], tmp_path / "plugin-1", expected_logs) as second,
                ):
                    yield JobSet(api, writer, book, cluster, [first.kubelet, second.kubelet])
                for one in cluster:
                    await one.stop()


async def is_served(writer: Writer) -> bool:
    try:
        await writer.read(COLLECTION)
    except FuseTierError:
        return False
    return True


async def test_a_step_that_a_person_names_on_the_jobset_is_what_its_next_pods_find(
    jobset: JobSet, expected_logs: ExpectedLogs
) -> None:
    # On a machine that is busy a call of the coordinator's may have to be made again.
    expected_logs.allow(r"restart\.set_aside", r"membership\..*", "copy.failed", r"coordinator\.node_gone")
    await jobset.start()
    await jobset.save(10, 20, 30)
    await jobset.annotate(10)
    await jobset.end()
    await jobset.start()
    assert jobset.files() == at(10)
    await until(lambda: jobset.is_told("on from step 10"))

    # It is followed once: what is saved since stays. A step that is marked as bad does not.
    await jobset.save(40, 50)
    marked = await jobset.cluster[NODES[1]].cli("mark-bad", "50", "--job", str(JOB))
    assert marked.returncode == 0, marked.stderr
    await until(lambda: is_bad(jobset, 50))
    await jobset.end()
    await jobset.start()
    assert jobset.files() == at(10, 40)

    # One that is not there is refused, with those that are, and nothing is changed.
    await jobset.annotate(77)
    await jobset.end()
    with pytest.raises(Refused, match=r"step 77 of ml/llama is not complete: those that are: 10, 40$"):
        await jobset.start()
    await jobset.annotate(None)
    await jobset.end()
    await jobset.start()
    assert jobset.files() == at(10, 40)
    await jobset.end()


async def is_bad(jobset: JobSet, step: int) -> bool:
    """Whether nobody goes on from it, as people are told."""
    shown = json.loads((await jobset.cluster[NODES[0]].cli("status", "--job", str(JOB), "--json")).stdout)
    return all(one["step"] != step or not one["restorable"] for one in shown)
