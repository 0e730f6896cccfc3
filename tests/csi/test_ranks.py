"""A pod's volume is the one of its rank, as the ranks server says; until that says it, the pod's event says why."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from controller.ranks.book import RankBook
from controller.ranks.objects import Name, Owner, read_node, read_pod
from controller.ranks.service import RanksService
from csi import csi_pb2 as pb
from csi import places, ranks_pb2
from csi.context import Pod
from csi.csi_pb2_grpc import NodeStub
from csi.local.kubelet import Kubelet, PodVolume, Refused
from csi.places import Rank
from csi.pod_files import JAX_INIT_INFO, write_pod_files
from csi.ranks_pb2_grpc import add_RanksServiceServicer_to_server
from csi.services import DRIVER_NAME
from fuse_tier.config import CoordinatorConfig, NodeConfig
from fuse_tier.coordinate.fencing import Fence
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import IdentityBusy
from fuse_tier.localcluster import LocalNode
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.statuses import StatedError
from tests.controller.ranks.objects import jobset_pod, node, pod
from tests.csi.conftest import Plugin, plugin_beside
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

OURS, OTHER = "a", "b"
LEASE_SECONDS = 1.0


class Service(RanksService):
    """Tells the test who has asked."""

    def __init__(self, book: RankBook) -> None:
        super().__init__(book, Fence(1), authenticated=False)
        self.book = book
        self.asked: set[str] = set()

    async def Update(self, request: ranks_pb2.UpdateRequest, caller: Caller) -> ranks_pb2.UpdateResponse:  # noqa: N802
        self.asked.add(request.pod_uid)
        return await super().Update(request, caller)


@dataclass
class Ranks:
    """The ranks server, told of pods by the test as by an API server; the plugin of node a, and another node."""

    service: Service
    plugin: Plugin
    other: LocalNode

    @property
    def book(self) -> RankBook:
        return self.service.book

    @property
    def kubelet(self) -> Kubelet:
        return self.plugin.kubelet

    def schedule(self, found: dict[str, Any]) -> str:
        """Gives the pod's uid."""
        read = read_pod(found, DRIVER_NAME)
        assert read is not None
        self.book.see_pod(read)
        return read.uid

    async def has_asked(self, uid: str) -> bool:
        """Whether the plugin waits for that pod's rank."""
        return uid in self.service.asked

    async def assign_other_worker(self) -> None:
        """Of a job of two the one on the other node."""
        uid = self.start_worker(0, OTHER)
        await self.service.Update(
            ranks_pb2.UpdateRequest(node=OTHER, pod_uid=uid, rank=-1), Caller(None, "127.0.0.1:1")
        )

    def start_worker(self, worker: int, on: str) -> str:
        """Of a job of two."""
        return self.schedule(jobset_pod("llama", 1, 0, worker, node=on, created="2026-01-01"))


@asynccontextmanager
async def coordinator(service: Service, address: str) -> AsyncIterator[None]:
    config = CoordinatorConfig.model_validate({"listen": address, "lease": LEASE_SECONDS})
    services = [(add_RanksServiceServicer_to_server, service)]
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_coordinator, config, services, service.book.domain_of)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
async def ranks(make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Ranks]:
    book = RankBook()
    for number, name in enumerate((OURS, OTHER)):
        book.see_node(name, read_node(node(f"10.0.0.{number}", "pool")))
    book.see_workers(Owner("Job", Name("ml", "llama-workers-0")), 2)
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    cluster = await make_cluster(OURS, OTHER, bucket=False, tls=False, coordinator=False, start=False, replicas=0)
    for one in cluster:
        del one.config["peers"]
        one.config["coordinator"] = address
    service = Service(book)
    async with coordinator(service, address):
        await cluster.start()
        async with plugin_beside(cluster[OURS], tmp_path, expected_logs, "--jax-init-info") as plugin:
            yield Ranks(service, plugin, cluster[OTHER])
        for one in cluster:
            await one.stop()


@pytest.mark.network
async def test_a_pod_that_waits_too_long_is_told_whom_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "RANKS", 0.1)
    (port, control, bulk) = free_ports(3)
    config = NodeConfig.model_validate(
        {
            "node": OURS,
            "ram": {"path": "/nowhere", "size": "1MiB"},
            "socket": "/nowhere/node.sock",
            "listen": {"control": f"127.0.0.1:{control}", "bulk": f"127.0.0.1:{bulk}"},
            "coordinator": f"127.0.0.1:{port}",
        }
    )
    known = Pod("ml", "llama-workers-0-1-0", "uid-1")
    with pytest.raises(StatedError, match=r"waits for its place in its job; the coordinator .* cannot") as refusal:
        await places.Ranks(config).rank_of(known)
    assert refusal.value.status is grpc.StatusCode.UNAVAILABLE
    book = RankBook()
    book.see_workers(Owner("Job", Name("ml", "llama-workers-0")), 2)
    found = read_pod(jobset_pod("llama", 1, 0, 1, uid=known.uid, node=OURS), DRIVER_NAME)
    assert found is not None
    book.see_pod(found)
    async with coordinator(Service(book), str(config.coordinator)):
        with pytest.raises(StatedError) as refusal:
            await places.Ranks(config).rank_of(known)
    assert refusal.value.status is grpc.StatusCode.FAILED_PRECONDITION
    assert "waits for the ranks of ml/llama (1x2): 1 of 2 pods are there" in str(refusal.value)


@pytest.mark.fuse
@pytest.mark.root
async def test_a_pod_waits_for_its_job_and_then_has_the_volume_and_the_file_of_its_rank(ranks: Ranks) -> None:
    kubelet = ranks.kubelet
    uid = ranks.start_worker(1, OURS)
    waiting = kubelet.stage("llama-workers-0-1-0", uid=uid, namespace="ml")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kubelet.publish, waiting)
        await until(lambda: ranks.has_asked(uid))
        assert not any(waiting.target.glob("*"))
        await ranks.assign_other_worker()
    assert os.getxattr(waiting.target, "user.fuse_tier.identity") == b"ml/llama/1"
    told = waiting.target / JAX_INIT_INFO
    assert told.read_text() == "1\n10.0.0.1:8476\n"
    told.write_text("what a job made of it")
    await kubelet.publish(waiting)  # as at a restart of kubelet's
    assert told.read_text() == "1\n10.0.0.1:8476\n"
    (waiting.target / "saved").write_text("content")
    await kubelet.end(waiting)
    await a_pod_of_no_job_has_its_own_name(ranks, kubelet)

    await a_volume_that_is_anothers_names_its_pod_and_node(ranks, kubelet)
    await the_topology_is_that_of_the_nodes_labels(kubelet)


async def a_volume_that_is_anothers_names_its_pod_and_node(ranks: Ranks, kubelet: Kubelet) -> None:
    attributes = {"workload": "gemma", "replica": "0"}
    here = kubelet.stage(
        "gemma-0", uid=ranks.schedule(pod("gemma-0", node=OURS)), namespace="ml", attributes=attributes
    )
    await kubelet.publish(here)
    elsewhere = ranks.plugin.node.directory.parent / "mnt"
    name = f"pod ml/gemma-0 ({here.uid})"
    with pytest.raises(IdentityBusy, match=f"ml/gemma/0 is mounted on node a .* for {re.escape(name)}, seen there"):
        await ranks.other.mount("ml/gemma/0", elsewhere)
    await kubelet.end(here)
    await ranks.other.mount("ml/gemma/0", elsewhere, user="pod ml/gemma-0-of-before (uid)")
    uid = ranks.schedule(pod("gemma-0-again", node=OURS))
    late = kubelet.stage("gemma-0-again", uid=uid, namespace="ml", attributes=attributes)
    with pytest.raises(Refused) as refusal:
        await kubelet.publish(late)
    assert refusal.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "on node b (" in refusal.value.message and "for pod ml/gemma-0-of-before (uid)" in refusal.value.message
    assert "delete that pod" in refusal.value.message
    await ranks.other.unmount(elsewhere)
    await kubelet.publish(late)
    await kubelet.end(late)


async def the_topology_is_that_of_the_nodes_labels(kubelet: Kubelet) -> None:
    told = await kubelet.call(NodeStub, "NodeGetInfo", pb.NodeGetInfoRequest())
    assert dict(told.accessible_topology.segments) == {
        "cloud.google.com/gke-nodepool": "pool",
        "topology.kubernetes.io/zone": "zone-of-pool",
        "kubernetes.io/hostname": "host-of-pool",
    }


async def a_pod_of_no_job_has_its_own_name(ranks: Ranks, kubelet: Kubelet) -> None:
    alone: PodVolume = kubelet.stage("alone", uid=ranks.schedule(pod("alone", node=OURS)), namespace="ml")
    await kubelet.publish(alone)
    assert os.getxattr(alone.target, "user.fuse_tier.identity") == b"ml/alone/0"
    assert not (alone.target / JAX_INIT_INFO).exists()
    await kubelet.end(alone)


def test_the_file_for_jax_is_always_whole_and_goes_when_there_is_no_rank(tmp_path: Path) -> None:
    whole = {rank: Rank(rank, "ml/llama", "1x2", f"10.0.0.{rank}") for rank in (1, 22)}
    write_pod_files(str(tmp_path), whole[1])
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((tmp_path / JAX_INIT_INFO).read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(300):
            write_pod_files(str(tmp_path), whole[1 if number % 2 else 22])
    finally:
        done.set()
        reader.join()
    assert seen <= {rank.jax_init_info for rank in whole.values()}
    assert os.listdir(tmp_path) == [JAX_INIT_INFO]
    write_pod_files(str(tmp_path), None)
    assert os.listdir(tmp_path) == []
