"""What the coordinator tells of how nodes are used, asked for again and again.

A configuration is looked at when what concerns it has changed. It is asked over mutual TLS, as nodes ask, with a
certificate that this process makes for itself and keeps in no Secret; the API server is asked for nothing here. While
the coordinator does not answer, what it said last holds.
"""

from __future__ import annotations

import os
import tempfile
from typing import Final

import structlog
import trio

from controller.driver.configuration import Configuration
from controller.reconciling.authorities import Files
from controller.reconciling.certificates import RANKS_NAME
from controller.reconciling.issuing import Issuer
from controller.reconciling.queue import Queue
from controller.reconciling.selection import runs_on
from controller.reconciling.usage import Usage, usage_of
from controller.reconciling.world import World
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.members import Picture
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import picture_from_wire
from fuse_tier.wire.standing import standings_from_wire
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 15.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_SILENCES_BORNE: Final = 20  # in a row, until that is told


class Asker:
    """Of the coordinator at ``address``. ``usage`` is what it says of a configuration."""

    def __init__(self, address: str, world: World, queue: Queue, issuer: Issuer, every_seconds: float) -> None:
        self._address = address
        self._world = world
        self._queue = queue
        self._issuer = issuer
        self._every_seconds = every_seconds
        self._heard: tuple[Picture, tuple[Standing, ...]] | None = None
        self._told: dict[str, Usage] = {}  # by uid

    def usage(self, configuration: Configuration) -> Usage | None:
        """What was heard last; None before anything was."""
        if self._heard is None:
            return None
        nodes = {node.name for node in self._world.nodes.values() if runs_on(configuration, node)}
        return usage_of(nodes, *self._heard)

    async def run(self) -> None:
        """Until cancelled."""
        silences, pause = 0, self._every_seconds
        with tempfile.TemporaryDirectory() as directory:
            certificate = _Certificate(directory)
            while True:
                try:
                    await certificate.renew(self._issuer)
                    self._heard = await self._ask(certificate.tls)
                except (FuseTierError, OSError) as error:
                    silences += 1
                    # One that is just being started is heard soon.
                    pause = min(_FIRST_PAUSE_SECONDS if silences == 1 else 2 * pause, self._every_seconds)
                    if silences == _SILENCES_BORNE:
                        remedy = "see the pods of high-scale-checkpointing-ranks; it is asked again"
                        log.warning("coordinator.silent", address=self._address, reason=str(error), remedy=remedy)
                else:
                    silences, pause = 0, self._every_seconds
                    self._tell()
                await trio.sleep(pause)

    async def _ask(self, tls: TlsFiles) -> tuple[Picture, tuple[Standing, ...]]:
        async with Client(self._address, CoordinatorStub, tls, RANKS_NAME) as client:
            picture = await client.call("Picture", pb.Empty(), Deadline.CONTROL_CALL)
            reply = await client.call("Checkpoints", pb.CheckpointsRequest(), Deadline.CONTROL_CALL)
        return picture_from_wire(picture), standings_from_wire(reply.standings)

    def _tell(self) -> None:
        found = {
            uid: usage
            for uid, configuration in self._world.configurations.items()
            if (usage := self.usage(configuration)) is not None
        }
        self._queue.add([uid for uid, usage in found.items() if self._told.get(uid) != usage])
        self._told = found


class _Certificate:
    """Ours, as files in a directory that is our own."""

    def __init__(self, directory: str) -> None:
        places = {name: os.path.join(directory, name) for name in ("ca.crt", "tls.crt", "tls.key")}
        self.tls = TlsFiles(*places.values())
        self._places = places
        self._files: Files = {}

    async def renew(self, issuer: Issuer) -> None:
        """Made anew when it has to be. Raises what an Issuer raises, OSError."""
        files = await issuer.client_files(self._files)
        if files == self._files:
            return
        for name, place in self._places.items():
            _write(place, files[name])
        self._files = files


def _write(place: str, content: bytes) -> None:
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
