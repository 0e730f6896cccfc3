"""The example of a JobSet trains, in pods on three nodes of the driver; one is lost, and all go on from one step.

What the JobSet controller, the scheduler and kubelet do with it, the test does: as many pods as the manifest says,
with its commands, arguments and volumes, all of them anew when one has ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from controller.ranks.book import RankBook
from controller.ranks.objects import Name, Owner, read_node, read_pod
from controller.ranks.service import RanksService
from csi.local.kubelet import PodVolume
from csi.ranks_pb2_grpc import add_RanksServiceServicer_to_server
from csi.services import DRIVER_NAME
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.fencing import Fence
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.localcluster import LocalCluster
from fuse_tier.localcluster.ports import free_ports
from tests.controller.ranks.objects import jobset_pod, node
from tests.csi.conftest import Plugin, plugin_beside
from tests.e2e.jobs import A_NODE_DIED
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(300)]

MANIFEST = Path(__file__).parents[2] / "examples/emulated-jobset.yaml"
PROGRAM, JOBSET = yaml.safe_load_all(MANIFEST.read_text())
(REPLICATED,) = JOBSET["spec"]["replicatedJobs"]
JOB: dict[str, Any] = REPLICATED["template"]["spec"]
POD: dict[str, Any] = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]
NODES = ("a", "b", "c")
# Bytes of what a pod says; the kernel makes it a few lines. So no shard is far ahead of another, as in a real job.
_SMALLEST_BUFFER = 0


@dataclass
class Running:
    """A pod whose container runs."""

    plugin: Plugin
    volume: PodVolume
    process: subprocess.Popen[str]

    async def says(self, text: str) -> str:
        """The next line that has this; what it says beyond it, a few lines, waits to be read, and so does it."""

        def read() -> str:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if text in line:
                    return line
            raise AssertionError(f"{self.volume.name} ended without saying {text!r}")

        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)

    async def end(self) -> None:
        """As kubelet does: the container, and then the volume."""
        self.process.kill()
        await trio.to_thread.run_sync(self.process.wait)
        await self.plugin.kubelet.end(self.volume)


class Site:
    """Nodes with the driver, and a ranks server that hears of pods from the test."""

    def __init__(self, book: RankBook, plugins: Mapping[str, Plugin], program: Path, stack: AsyncExitStack) -> None:
        self._book = book
        self._plugins = plugins
        self._program = program
        self._stack = stack

    async def start_job(self, attempt: int, *nodes: str) -> list[Running]:
        """All pods of the JobSet, each on a node."""
        assert len(nodes) == REPLICATED["replicas"] * JOB["completions"]
        found: dict[int, Running] = {}

        async def start(index: int, name: str) -> None:
            found[index] = await self._start_pod(attempt, index, name)

        async with trio.open_nursery() as nursery:  # no volume is there before all pods are
            for index, name in enumerate(nodes):
                nursery.start_soon(start, index, name)
        return [found[index] for index in sorted(found)]

    async def _start_pod(self, attempt: int, index: int, on: str) -> Running:
        name = JOBSET["metadata"]["name"]
        told = jobset_pod(
            name, REPLICATED["replicas"], 0, index, attempt=attempt, node=on, created=f"2026-01-01T00:00:0{attempt}Z"
        )
        read = read_pod(told, DRIVER_NAME)
        assert read is not None
        self._book.see_pod(read)
        plugin = self._plugins[on]
        (ours,) = (one for one in POD["volumes"] if "csi" in one)
        volume = plugin.kubelet.stage(
            told["metadata"]["name"],
            uid=read.uid,
            namespace=told["metadata"]["namespace"],
            attributes=ours["csi"].get("volumeAttributes", {}),
        )
        await plugin.kubelet.publish(volume)
        places = {
            one["mountPath"]: volume.target if one["name"] == ours["name"] else self._program
            for one in CONTAINER["volumeMounts"]
        }
        return Running(plugin, volume, self._stack.enter_context(container(index, places)))

    def forget(self, pods: list[Running]) -> None:
        """They are gone from the API server, as all pods of a JobSet are that begins anew."""
        for pod in pods:
            self._book.lose_pod(pod.volume.uid)


@contextmanager
def container(index: int, places: Mapping[str, Path]) -> Iterator[subprocess.Popen[str]]:
    """The manifest's command with its arguments, which sees directories where the manifest has them."""
    made = [f'mkdir -p "{path}" && mount --bind "{directory}" "{path}"' for path, directory in places.items()]
    script = " && ".join(["mount --make-rprivate /", "mount -t tmpfs none /mnt", *made, 'exec "$@"'])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALLEST_BUFFER)
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, "sh", *CONTAINER["command"], *CONTAINER["args"]],
            env={"PATH": os.environ["PATH"], "JOB_COMPLETION_INDEX": str(index)},
            stdout=theirs.fileno(),
            text=True,
        )
        process.stdout = ours.makefile("r")
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@asynccontextmanager
async def ranks_server(book: RankBook, address: str) -> AsyncIterator[None]:
    config = CoordinatorConfig.model_validate({"listen": address, "lease": 1.0})
    services = [(add_RanksServiceServicer_to_server, RanksService(book, Fence(1), authenticated=False))]
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_coordinator, config, services, book.domain_of)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_site(cluster: LocalCluster, directory: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Site]:
    book = RankBook()
    for number, name in enumerate(NODES):
        book.see_node(name, read_node(node(f"10.0.0.{number}")))
    book.see_workers(Owner("Job", Name("ml", f"{JOBSET['metadata']['name']}-workers-0")), JOB["completions"])
    address = f"127.0.0.1:{free_ports(1)[0]}"
    for one in cluster:
        del one.config["peers"]
        one.config["coordinator"] = address
    program = directory / "program"
    program.mkdir()
    for name, text in PROGRAM["data"].items():
        (program / name).write_text(text)
    async with ranks_server(book, address), AsyncExitStack() as stack:
        await cluster.start()
        plugins = {}
        for one in cluster:
            logs = directory / f"plugin-{one.name}"
            logs.mkdir()
            plugins[one.name] = await stack.enter_async_context(plugin_beside(one, logs, expected_logs))
        yield Site(book, plugins, program, stack)
        for one in cluster:
            if one.family.runs:
                await one.stop()


def uninterrupted(directory: Path, index: int) -> str:
    """The last words of a pod that nothing happened to."""
    checkpoints = directory / f"uninterrupted-{index}"
    checkpoints.mkdir()
    program, volume = directory / "program", checkpoints
    with container(index, {"/mnt/program": program, "/mnt/checkpoints": volume}) as process:
        assert process.stdout is not None
        return process.stdout.read().splitlines()[-1]


async def test_a_job_that_loses_a_node_goes_on_from_one_step_and_ends_with_the_weights_of_one_that_did_not(
    make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster(*NODES, bucket=False, tls=False, coordinator=False, start=False, settle="50ms")
    async with running_site(cluster, tmp_path, expected_logs) as site:
        first = await site.start_job(0, "a", "b")
        for index, pod in enumerate(first):
            assert await pod.says("start at step") == f"shard {index}: start at step 0\n"
        for index, pod in enumerate(first):
            await pod.says("step 101:")
            await pod.plugin.node.wait(f"ml/{JOBSET['metadata']['name']}/{index}", "peer", 60)

        expected_logs.allow(*A_NODE_DIED, r"restart\..*")
        first[0].process.kill()
        await first[0].plugin.kill()
        await first[0].plugin.node.lose_ram()
        await first[1].end()
        site.forget(first)
        again = await site.start_job(1, "c", "b")
        starts = {int((await pod.says("start at step")).split()[-1]) for pod in again}
        (start,) = starts
        assert 100 <= start < int(CONTAINER["args"][1])
        ends = sorted([(await pod.says("end at step")).strip() for pod in again])
        for index, told in enumerate(ends):
            assert told == await trio.to_thread.run_sync(uninterrupted, tmp_path, index)
        for pod in again:
            await pod.end()
