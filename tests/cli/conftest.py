"""A node's socket, served by this test over real gRPC, and the command line as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError, NotFound
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Lineage, Manifest, encode
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import add_NodeServicer_to_server
from fuse_tier.wire.grpc import Caller, serve

SNAPSHOT = "default/llama/0@12"
CREATED_NS = 1_700_000_000_000_000_000


def example_manifest() -> Manifest:
    """Of every kind one entry; one name is no text, one would steer a terminal."""
    blob = Blob(bytes(range(16)), 5 << 20)
    entries = (
        Entry(b"", Kind.DIRECTORY, mode=0o755),
        Entry(b"again", Kind.SYMLINK, mode=0o777, target=b"weights.bin"),
        Entry(b"evil\x1b[2J", Kind.FIFO, mode=0o600),
        Entry(b"first", Kind.FILE, mode=0o644, blob=blob, mtime_ns=CREATED_NS),
        Entry(b"second", Kind.HARDLINK, target=b"first"),
        Entry(b"\xff", Kind.FILE, mode=0o4755, blob=Blob(bytes(16), 0)),
    )
    lineage = Lineage("exp-7", owner_uid="1234", world_size=8, topology="2x4")
    return Manifest(SnapshotId.parse(SNAPSHOT), lineage, "a", CREATED_NS, entries)


def status_facts() -> dict[str, Any]:
    """As docs/operations.md has them."""
    return {
        "node": "a",
        "version": "0.1.0",
        "cluster": "default",
        "passthrough": "on",
        "tiers": [
            {"tier": "ram", "place": "ram of a", "state": "ok", "reason": "", "capacity_bytes": 2 << 30,
             "free_bytes": 1 << 30, "snapshots": 2},
            {"tier": "bucket", "place": "gs://checkpoints/prefix", "state": "unavailable",
             "reason": "connection refused\x1b", "capacity_bytes": None, "free_bytes": None, "snapshots": None},
        ],
        "volumes": [
            {"identity": "default/llama/0", "mountpoint": "/ckpt", "mounted": True, "run": "llama",
             "newest": {"number": 12, "created_ns": CREATED_NS, "files": 8, "bytes": 1 << 30}, "dirty": True,
             "durable": {"ram": 12, "peer": 11, "bucket": None}, "peers": {"b": 11}, "queue": 2,
             "unreserved_bytes": 5 << 20},
            {"identity": "default/llama/1", "mountpoint": "", "mounted": False, "run": "llama", "newest": None,
             "dirty": False, "durable": {"ram": None, "peer": None, "bucket": None}, "peers": {}, "queue": 0,
             "unreserved_bytes": 0},
        ],
        "queue": {"copies": 2, "bytes": 3 << 20},
        "rates": {"peer_bytes_per_second": 1.5e9, "bucket_bytes_per_second": 0.0},
        "deduplication": {
            "peer": {"named_bytes": 300, "sent_bytes": 125, "factor": 2.4},
            "bucket": {"named_bytes": 0, "sent_bytes": 0, "factor": None},
        },
    }  # fmt: skip


@dataclass
class AskedNode:
    """What a node's worker serves; the test says what it answers, and sees what it was asked."""

    socket: str
    requests: list[Any] = field(default_factory=list)
    snapshots: list[pb.Snapshot] = field(default_factory=list)
    standings: list[pb.Standing] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: FuseTierError | None = None
    newest: pb.Snapshot | None = None
    hangs: bool = False
    finishes: bool = True
    asked: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def Status(self, request: pb.Empty, caller: Caller) -> pb.StatusReply:  # noqa: N802
        self._note(request)
        return pb.StatusReply(facts=json.dumps(status_facts()))

    async def List(self, request: pb.ListRequest, caller: Caller) -> pb.ListReply:  # noqa: N802
        self._note(request)
        return pb.ListReply(snapshots=self.snapshots)

    async def Checkpoints(self, request: pb.CheckpointsRequest, caller: Caller) -> pb.CheckpointsReply:  # noqa: N802
        self._note(request)
        return pb.CheckpointsReply(standings=self.standings)

    async def Show(self, request: pb.ShowRequest, caller: Caller) -> pb.ManifestText:  # noqa: N802
        self._note(request)
        if request.id != SNAPSHOT:
            raise NotFound(f"there is no snapshot {request.id}: fuse-tier ls lists what there is")
        return pb.ManifestText(text=encode(example_manifest()))

    async def Unmount(self, request: pb.UnmountRequest, caller: Caller) -> pb.UnmountReply:  # noqa: N802
        self._note(request)
        return pb.UnmountReply(identity="default/llama/0", newest=self.newest)

    async def Mount(self, request: pb.MountRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        async for step in self._steps(request):
            yield step

    async def Wait(self, request: pb.WaitRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        async for step in self._steps(request):
            yield step

    async def Restore(self, request: pb.RestoreRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        async for step in self._steps(request):
            yield step

    async def Verify(self, request: pb.NodeVerifyRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        async for step in self._steps(request):
            yield step

    def _note(self, request: Any) -> None:
        self.requests.append(request)
        self.asked.set()
        if self.error:
            raise self.error

    async def _steps(self, request: Any) -> AsyncIterator[pb.Step]:
        self._note(request)
        yield pb.Step(what="restoring from peer b", moved_bytes=1 << 20, total_bytes=4 << 20)
        if self.hangs:
            try:
                await trio.sleep_forever()
            finally:
                self.cancelled.set()
        yield pb.Step(what="restoring from peer b", moved_bytes=4 << 20, total_bytes=4 << 20)
        if self.finishes:
            yield pb.Step(done=True, facts=json.dumps(self.facts))


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Unix sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="ft-") as directory:
        yield Path(directory)


@pytest.fixture
async def node(short_directory: Path, nursery: trio.Nursery) -> AsyncIterator[AskedNode]:
    """A node that answers on its socket."""
    served = AskedNode(str(short_directory / "node.sock"))

    async def run(task_status: trio.TaskStatus[int]) -> None:
        services = [(add_NodeServicer_to_server, served)]
        await serve(services, f"unix:{served.socket}", None, task_status=task_status)

    await nursery.start(run)
    yield served
    nursery.cancel_scope.cancel()


def command(*arguments: str) -> list[str]:
    """How the command line is started."""
    return [sys.executable, "-m", "fuse_tier.cli", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would change the outcome."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FUSE_TIER_NODE", "COLUMNS")}
    return kept | changes


async def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, its output piped."""
    with trio.fail_after(60):
        done = await trio.run_process(
            command(*arguments), capture_stdout=True, capture_stderr=True, check=False, env=environment(**changes)
        )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@asynccontextmanager
async def running(*arguments: str, stderr: int = subprocess.PIPE, **changes: str) -> AsyncIterator[trio.Process]:
    """Runs a command beside the test, which is killed when the test is done with it."""
    process = await trio.lowlevel.open_process(
        command(*arguments), stdout=subprocess.PIPE, stderr=stderr, env=environment(**changes)
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()
