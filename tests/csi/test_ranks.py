"""A pod's volume is the one of its rank, as the ranks server says; until that says it, the pod's event says why."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from controller.ranks.book import RankBook, Report
from controller.ranks.objects import Name, Owner, read_node, read_pod
from controller.ranks.service import RanksService
from csi.local.kubelet import Kubelet, PodVolume, Refused
from csi.places import Rank
from csi.pod_files import JAX_INIT_INFO, write_pod_files
from csi.ranks_pb2_grpc import add_RanksServiceServicer_to_server
from csi.services import DRIVER_NAME
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.localcluster.ports import free_ports
from tests.controller.ranks.objects import jobset_pod, node, pod
from tests.csi.conftest import Plugin, plugin_beside
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

OURS, OTHER = "a", "b"


@dataclass
class Ranks:
    """The ranks server, told of pods by the test as by an API server; and the plugin of node a."""

    book: RankBook
    plugin: Plugin

    @property
    def kubelet(self) -> Kubelet:
        return self.plugin.kubelet

    def schedule(self, found: dict[str, Any]) -> str:
        """Gives the pod's uid."""
        read = read_pod(found, DRIVER_NAME)
        assert read is not None
        self.book.see_pod(read)
        return read.uid

    def start_worker(self, worker: int, on: str) -> str:
        """Of a job of two."""
        return self.schedule(jobset_pod("llama", 1, 0, worker, node=on, created="2026-01-01"))


@asynccontextmanager
async def coordinator(book: RankBook, address: str) -> AsyncIterator[None]:
    config = CoordinatorConfig.model_validate({"listen": address})
    service = (add_RanksServiceServicer_to_server, RanksService(book, authenticated=False))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_coordinator, config, [service])
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
    cluster = await make_cluster(OURS, bucket=False, tls=False, coordinator=False, start=False)
    config = cluster[OURS].config
    config.pop("peers", None)
    config["coordinator"] = address
    async with coordinator(book, address):
        await cluster[OURS].start()
        async with plugin_beside(cluster[OURS], tmp_path, expected_logs, "--jax-init-info") as plugin:
            yield Ranks(book, plugin)
        await cluster[OURS].stop()


@pytest.mark.fuse
@pytest.mark.root
async def test_a_pod_waits_for_its_job_and_then_has_the_volume_and_the_file_of_its_rank(ranks: Ranks) -> None:
    kubelet = ranks.kubelet
    uid = ranks.start_worker(1, OURS)
    waiting = kubelet.stage("llama-workers-0-1-0", uid=uid, namespace="ml")
    with trio.fail_after(30), pytest.raises(Refused) as refusal:  # long before kubelet would give up
        await kubelet.publish(waiting)
    assert refusal.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "waits for the ranks of ml/llama (1x2): " in refusal.value.message
    assert ": 1 of 2 pods are there" in refusal.value.message
    assert not any(waiting.target.glob("*"))
    ranks.book.update(Report(OTHER, ranks.start_worker(0, OTHER)))
    await kubelet.publish(waiting)
    assert os.getxattr(waiting.target, "user.fuse_tier.identity") == b"ml/llama/1"
    told = waiting.target / JAX_INIT_INFO
    assert told.read_text() == "1\n10.0.0.1:8476\n"
    told.write_text("what a job made of it")
    await kubelet.publish(waiting)  # as at a restart of kubelet's
    assert told.read_text() == "1\n10.0.0.1:8476\n"
    (waiting.target / "saved").write_text("content")
    await kubelet.end(waiting)
    await a_pod_of_no_job_has_its_own_name(ranks, kubelet)


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
    for number in range(300):
        write_pod_files(str(tmp_path), whole[1 if number % 2 else 22])
    done.set()
    reader.join()
    assert seen <= {rank.jax_init_info for rank in whole.values()}
    assert os.listdir(tmp_path) == [JAX_INIT_INFO]
    write_pod_files(str(tmp_path), None)
    assert os.listdir(tmp_path) == []
