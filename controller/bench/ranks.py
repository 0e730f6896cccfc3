"""How fast the pods of a restarted job have their ranks, and what that takes: rows of ``fuse-tier bench``.

The ranks server is a process of its own, as it is deployed but for TLS. It follows an API server that only lists and
watches (``_Api``), and is asked by as many nodes as the job has, each over its own connection (``bench/fleet.py``).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import trio
import yaml

from controller.ranks.checkpoints import COLLECTION
from controller.ranks.shape import Shape
from csi import ranks_pb2 as pb
from csi.services import DRIVER_NAME
from fuse_tier.bench.fleet import Wire, connected, most_connections
from fuse_tier.bench.frame import Figure, Row
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.localcluster.node import until_so
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.processes import Family, kill_all, peak_megabytes

_UPDATE: Final = "/ranks.RanksService/Update"
_HOLD_SECONDS: Final = 12.0
_LOOK_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 110.0
_LIMIT_1536_SECONDS: Final = 1.0
_LIMIT_10000_SECONDS: Final = 5.0
_LIMIT_MEGABYTES: Final = 1000.0
_JOB: Final = "ml/llama"

Object = dict[str, Any]


class _Api:
    """The objects of one JobSet, listed; then the last of its pods is scheduled, which the watch tells."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        pods = [_pod(shape, rank) for rank in shape.ranks]
        self._last = pods[-1]
        self._scheduled: queue.SimpleQueue[None] = queue.SimpleQueue()
        pods[-1] = {**self._last, "spec": {**self._last["spec"], "nodeName": ""}}
        self._lists: dict[str, list[Object]] = {
            "/api/v1/nodes": [_node(shape, rank) for rank in shape.ranks],
            "/api/v1/pods": pods,
            "/apis/batch/v1/jobs": [_owner(shape, number) for number in range(shape.slices)],
            "/apis/apps/v1/statefulsets": [],
            "/apis/jobset.x-k8s.io/v1alpha2/jobsets": [],
            COLLECTION: [],
        }
        self.watched = threading.Event()

    def schedule_last(self) -> None:
        self._scheduled.put(None)

    def listed(self, path: str, begin: int, limit: int) -> Object:
        objects = self._lists[path]
        following = str(begin + limit) if begin + limit < len(objects) else ""
        return {
            "metadata": {"resourceVersion": "1", "continue": following},
            "items": objects[begin : begin + limit],
        }

    def events(self, path: str) -> Iterator[Object]:
        if path == "/api/v1/pods":
            self.watched.set()
            self._scheduled.get()
            yield {"type": "MODIFIED", "object": self._last}
        threading.Event().wait()  # a watch without news, until the process ends


@contextmanager
def _serving(api: _Api) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(asked.query).items()}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if "watch" not in query:
                found = api.listed(asked.path, int(query.get("continue", "0")), int(query["limit"]))
                body = json.dumps(found).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in api.events(asked.path):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True, slots=True)
class _Server:
    api: _Api
    address: str
    family: Family

    def peak_megabytes(self) -> float:
        """The most that the process had in memory."""
        return peak_megabytes(self.family.pid)


@asynccontextmanager
async def _ranks_server(directory: Path, shape: Shape) -> AsyncIterator[_Server]:
    directory.mkdir()
    api = _Api(shape)
    with _serving(api) as url:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        (directory / "coordinator.yaml").write_text(yaml.safe_dump({"listen": address}))
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [{"name": "bench", "cluster": {"server": url}}],
            "users": [{"name": "bench", "user": {}}],
        }
        (directory / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        arguments = ["--config", str(directory / "coordinator.yaml")]
        arguments += ["--kubeconfig-path", str(directory / "kubeconfig")]
        family = Family("the ranks server", ["-m", "controller.ranks.cli", *arguments], directory / "ranks.log")
        family.start()
        try:

            async def listens() -> bool:
                host, _, port = address.partition(":")
                try:
                    await (await trio.open_tcp_stream(host, int(port))).aclose()
                except OSError:
                    return False
                return api.watched.is_set()

            await until_so(family, listens)
            yield _Server(api, address, family)
        finally:
            with trio.CancelScope(shield=True):
                await kill_all([family])


async def _restart(server: _Server) -> float:
    """Seconds from the scheduling of the last pod until every node has its pod's rank, which is the one it had."""
    shape, last = server.api.shape, server.api.shape.ranks[-1]
    begun, asked = 0.0, 0

    async def has_rank(rank: int, wire: Wire) -> None:
        nonlocal asked
        request = pb.UpdateRequest(
            node=f"node-{rank}",
            pod_uid=f"pod-{rank}",
            rank=rank,
            jobset=_JOB,
            jobset_shape=str(shape),
            hold_seconds=_HOLD_SECONDS,
        )
        asked += 1
        while True:
            try:
                answer = await wire.call(_UPDATE, request, pb.UpdateResponse)
            except TierUnavailable:  # the server has not heard yet where the pod is
                if rank != last:
                    raise
                await trio.sleep(_LOOK_SECONDS)
                continue
            if answer.new_state == pb.ASSIGNED:
                break
        if answer.rank != rank:
            raise FuseTierError(f"the node that had rank {rank} was given {answer.rank}")

    async with connected(server.address, most_connections(len(shape.ranks))) as wires:
        with trio.fail_after(_PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for rank in shape.ranks[:-1]:
                    nursery.start_soon(has_rank, rank, wires[rank % len(wires)])
                await _until_heard(wires[0], shape)
                begun = time.perf_counter()
                server.api.schedule_last()
                nursery.start_soon(has_rank, last, wires[last % len(wires)])
            return time.perf_counter() - begun


async def _until_heard(wire: Wire, shape: Shape) -> None:
    """Until the server has heard from all nodes but the last one."""
    request = pb.UpdateRequest(
        node="node-0", pod_uid="pod-0", rank=0, jobset=_JOB, jobset_shape=str(shape), hold_seconds=0.0
    )
    while True:
        answer = await wire.call(_UPDATE, request, pb.UpdateResponse)
        if f"{_JOB.partition('/')[2]}-workers-{shape.slices - 1}-{shape.workers - 1} (not scheduled)" == (
            answer.waits_for.removeprefix("ml/")
        ):
            return
        await trio.sleep(_LOOK_SECONDS)


async def _seconds(directory: Path, shape: Shape, limit: float) -> Figure:
    seconds = []
    for run in range(3):
        async with _ranks_server(directory / str(run), shape) as server:
            seconds.append(await _restart(server))
    connections = most_connections(len(shape.ranks))
    beside = "" if connections == len(shape.ranks) else f"{connections} connections, as many as may be open here"
    return Figure(sorted(seconds)[1], limit, beside)


async def _seconds_1536(directory: Path) -> Figure:
    return await _seconds(directory, Shape(3, 512), _LIMIT_1536_SECONDS)


async def _seconds_10000(directory: Path) -> Figure:
    return await _seconds(directory, Shape(20, 500), _LIMIT_10000_SECONDS)


async def _memory(directory: Path) -> Figure:
    async with _ranks_server(directory / "c", Shape(20, 500)) as server:
        await _restart(server)
        return Figure(server.peak_megabytes(), _LIMIT_MEGABYTES)


def _pod(shape: Shape, rank: int) -> Object:
    number, worker = divmod(rank, shape.workers)
    labels = {
        "jobset.sigs.k8s.io/jobset-name": "llama",
        "jobset.sigs.k8s.io/replicatedjob-replicas": str(shape.slices),
        "jobset.sigs.k8s.io/job-index": str(number),
        "jobset.sigs.k8s.io/restart-attempt": "1",
        "batch.kubernetes.io/job-completion-index": str(worker),
    }
    owner = {"kind": "Job", "name": f"llama-workers-{number}", "uid": f"job-{number}"}
    return {
        "metadata": {
            "name": f"llama-workers-{number}-{worker}",
            "namespace": "ml",
            "uid": f"pod-{rank}",
            "resourceVersion": "2",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": f"node-{rank}", "volumes": [{"name": "ckpt", "csi": {"driver": DRIVER_NAME}}]},
        "status": {"phase": "Pending"},
    }


def _node(shape: Shape, rank: int) -> Object:
    return {
        "metadata": {
            "name": f"node-{rank}",
            "uid": f"node-{rank}",
            "labels": {"cloud.google.com/gke-nodepool": f"pool-{shape.slice_of(rank)}"},
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"10.{rank >> 16}.{rank >> 8 & 255}.{rank & 255}"}]
        },
    }


def _owner(shape: Shape, number: int) -> Object:
    return {
        "metadata": {"name": f"llama-workers-{number}", "namespace": "ml", "uid": f"job-{number}"},
        "spec": {"completionMode": "Indexed", "completions": shape.workers},
    }


ROWS: Final = (
    Row("ranks.1536", "s", "limit", _seconds_1536),
    Row("ranks.10000", "s", "limit", _seconds_10000),
    Row("ranks.memory", "MB", "limit", _memory),
)
