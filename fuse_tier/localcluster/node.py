"""One node of a local cluster: its configuration, its processes, its RAM, and what an operator asks of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import trio
import yaml

from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster.processes import Family, detach_mounts
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire import control_pb2_grpc as rpc
from fuse_tier.wire.grpc import Client

_START_SECONDS = 60.0
_CALL_SECONDS = 30.0
_MOUNT_SECONDS = 300.0
_STOP_SECONDS = 90.0
_POLL_SECONDS = 0.02
WORKER = "fuse_tier.replicate"

Progress = Callable[[pb.Step], object]


class NotStarted(FuseTierError):
    """A process ended, or did not answer, while it was started."""


def _ignore(step: pb.Step) -> None:
    """For callers that show no progress."""


@dataclass(slots=True)
class LocalNode:
    """A node as real processes. Made by ``local_cluster``."""

    name: str
    directory: Path
    ram_path: Path
    config: dict[str, Any]
    through: Sequence[str] = ()
    family: Family = field(init=False)
    _mountpoints: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        command = ["-m", "fuse_tier.cli", "node", "--config", str(self.config_path)]
        self.family = Family(f"node {self.name}", command, self.log_path, self.through)

    @property
    def config_path(self) -> Path:
        """Its ``node.yaml``."""
        return self.directory / "node.yaml"

    @property
    def log_path(self) -> Path:
        """What its processes wrote."""
        return self.directory / f"{self.name}.log"

    @property
    def socket(self) -> str:
        """Where it takes commands."""
        return str(self.directory / "node.sock")

    async def start(self, **changes: Any) -> None:
        """Starts it and returns when it answers. ``changes`` are keys of node.yaml. Raises NotStarted."""
        self.config |= changes
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        self.family.start()
        await until_so(self.family, self._said_that_it_is_ready)

    async def _said_that_it_is_ready(self) -> bool:
        return f"node {self.config['node']} is ready" in self.family.output()

    async def stop(self) -> int:
        """Asks it to end (SIGTERM) and gives its exit status."""
        status = await self.family.terminate(_STOP_SECONDS)
        self._mountpoints.clear()
        return status

    async def kill(self) -> None:
        """Kills all its processes at once; its RAM stays, its mounts are gone."""
        await self.family.kill()
        self._forget_mounts()

    async def kill_supervisor(self) -> None:
        """Kills what was started, and with it its worker; its mounts go on, for the next ``start`` to find."""
        await self.family.behead(WORKER)

    async def lose_ram(self) -> None:
        """What the death of a machine does: its processes and its RAM are gone."""
        await self.kill()
        detach_mounts(self.ram_path)
        shutil.rmtree(self.ram_path, ignore_errors=True)

    async def mount(
        self, identity: str, directory: Path, progress: Progress = _ignore, **request: Any
    ) -> dict[str, Any]:
        """Mounts a volume, restoring what it had. ``request``: further fields of MountRequest."""
        directory.mkdir(parents=True, exist_ok=True)
        self._mountpoints.add(directory)
        message = pb.MountRequest(identity=identity, mountpoint=str(directory), **request)
        return await self._stream("Mount", message, _MOUNT_SECONDS, progress)

    async def unmount(self, directory: Path, drain_seconds: float = -1.0) -> None:
        """Ends a mount; a negative drain means as configured."""
        message = pb.UnmountRequest(mountpoint=str(directory), drain_seconds=drain_seconds)
        await self._call("Unmount", message, _STOP_SECONDS)
        self._mountpoints.discard(directory)

    async def status(self) -> dict[str, Any]:
        """What ``fuse-tier status --json`` says."""
        reply = await self._call("Status", pb.Empty())
        return dict(json.loads(reply.facts))

    async def list(self, identity: str = "") -> list[pb.Snapshot]:
        """Every snapshot that it knows, with the tiers that hold it."""
        reply = await self._call("List", pb.ListRequest(identity=identity))
        return list(reply.snapshots)

    async def wait(self, identity: str, tier: str, timeout_seconds: float, progress: Progress = _ignore) -> None:
        """Returns when everything sealed so far is on a tier. Raises DeadlineExceeded."""
        message = pb.WaitRequest(identity=identity, tier=tier, timeout_seconds=timeout_seconds)
        await self._stream("Wait", message, timeout_seconds + _CALL_SECONDS, progress)

    async def verify(self, tier: str = "", identity: str = "") -> dict[str, Any]:
        """Has every byte read and checked; the facts name what is damaged."""
        message = pb.NodeVerifyRequest(tier=tier, identity=identity)
        return await self._stream("Verify", message, _MOUNT_SECONDS, _ignore)

    async def restore(self, identity: str, to: Path, snapshot: int = 0) -> dict[str, Any]:
        """Restores into a directory, without a mount."""
        message = pb.RestoreRequest(identity=identity, snapshot=snapshot, to=str(to))
        return await self._stream("Restore", message, _MOUNT_SECONDS, _ignore)

    async def cli(self, command: str, *arguments: str) -> CompletedProcess[str]:
        """Runs ``fuse-tier COMMAND --node SOCKET …``, as a person would."""
        return await run_cli(command, "--node", self.socket, *arguments)

    async def _call(self, name: str, message: Any, deadline_seconds: float = _CALL_SECONDS) -> Any:
        # A connection of its own each time: a kept one remembers that the node was down.
        async with Client(f"unix:{self.socket}", rpc.NodeStub, None) as client:
            return await client.call(name, message, deadline_seconds)

    async def _stream(self, name: str, message: Any, deadline_seconds: float, progress: Progress) -> dict[str, Any]:
        facts = ""
        async with Client(f"unix:{self.socket}", rpc.NodeStub, None) as client:
            async for step in client.stream(name, message, deadline_seconds):
                progress(step)
                facts = step.facts if step.done else facts
        return dict(json.loads(facts)) if facts else {}

    def _forget_mounts(self) -> None:
        for mountpoint in self._mountpoints:
            detach_mounts(mountpoint)
        self._mountpoints.clear()

    def clean_up(self) -> None:
        """After its processes are gone: takes away its mounts and its RAM. The directory with its log stays."""
        self._forget_mounts()
        detach_mounts(self.ram_path)
        shutil.rmtree(self.ram_path, ignore_errors=True)


async def run_cli(*arguments: str, environment: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    done = await trio.run_process(
        [sys.executable, "-m", "fuse_tier.cli", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment,
    )
    return CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


async def until_so(family: Family, fact: Callable[[], Awaitable[bool]]) -> None:
    """Asks until it is so. Raises NotStarted, with the end of the process's log."""
    with trio.move_on_after(_START_SECONDS):
        while family.runs:
            if await fact():
                return
            await trio.sleep(_POLL_SECONDS)
        raise NotStarted(f"{family.name} ended when it was started; {family.last_words()}")
    raise NotStarted(f"{family.name} was not ready within {_START_SECONDS:g} s; {family.last_words()}")
