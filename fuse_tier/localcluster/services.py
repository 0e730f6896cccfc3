"""What the nodes of a local cluster share: the coordinator and the bucket, each to be ended and started again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.localcluster.node import until_so
from fuse_tier.localcluster.processes import Family
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire import control_pb2_grpc as rpc
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.tls import TlsFiles

BUCKET = "checkpoints"
_PREFIX = "local"
_STOP_SECONDS = 30.0
_CALL_SECONDS = 5.0


@dataclass(slots=True)
class LocalCoordinator:
    """The coordinator as a real process."""

    address: str
    directory: Path
    config: dict[str, Any]
    tls: TlsFiles | None
    through: Sequence[str] = ()
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        path = self.directory / "coordinator.yaml"
        self.family = Family(
            "the coordinator",
            ["-m", "fuse_tier.cli", "coordinator", "--config", str(path)],
            self.directory / "coordinator.log",
            self.through,
        )

    async def start(self) -> None:
        """Starts it and returns when it answers. Raises NotStarted."""
        (self.directory / "coordinator.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        self.family.start()
        await until_so(self.family, self._answers)

    async def _answers(self) -> bool:
        try:
            await self.picture()
        except TierUnavailable:
            return False
        return True

    async def stop(self) -> int:
        """Asks it to end (SIGTERM) and gives its exit status."""
        return await self.family.terminate(_STOP_SECONDS)

    async def kill(self) -> None:
        """Kills it (SIGKILL)."""
        await self.family.kill()

    async def picture(self) -> pb.PictureReply:
        """All that it knows."""
        async with Client(self.address, rpc.CoordinatorStub, self.tls) as client:
            reply: pb.PictureReply = await client.call("Picture", pb.Empty(), _CALL_SECONDS)
            return reply


@dataclass(slots=True)
class LocalBucket:
    """The emulated bucket. Its objects are gone when it is stopped."""

    _port: int = 0
    _running: AsyncExitStack | None = None
    _emulator: Emulator | None = None

    @property
    def url(self) -> str:
        """Where the nodes back up to."""
        return f"gs://{BUCKET}/{_PREFIX}"

    @property
    def emulator(self) -> Emulator:
        """Raises FuseTierError when it is stopped."""
        if self._emulator is None:
            raise FuseTierError("the emulated bucket is stopped")
        return self._emulator

    async def start(self) -> None:
        """Starts it, with no objects, at the same address as before."""
        self._running = AsyncExitStack()
        self._emulator = await self._running.enter_async_context(running_emulator(BUCKET, port=self._port))
        self._port = self._emulator.port

    async def stop(self) -> None:
        """Ends it; its address stays its own."""
        if self._running is not None:
            await self._running.aclose()
        self._running = self._emulator = None
