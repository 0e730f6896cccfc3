"""A keeper whose daemons die by their own hand: ``python -m tests.fs.dying GATE DEATH...``.

Each death is that of one daemon, in their order: ``before`` or ``after`` the handle of the first file that it opens
is with the keeper; or ``RENAME``, say, when it has done the first request of that kind and is about to answer.

If GATE is a pipe, the first daemon that is to live waits, as soon as it has had the kernel give requests out again,
until somebody has opened that for writing and closed it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from dataclasses import replace

from fuse_tier.fs import daemon
from fuse_tier.fs.daemon import Daemon
from fuse_tier.fs.handles import Handles, OpenFile
from fuse_tier.fs.mounting import MadeMount
from fuse_tier.fs.requests import Opened, Request
from fuse_tier.fs.session import Session
from fuse_tier.fs.spec import MountSpec
from fuse_tier.mount.device import Device
from fuse_tier.mount.keeper import Inheritance
from fuse_tier.mount.messages import Opcode

_GATE, *_DEATHS = sys.argv[1:]
del sys.argv[1:]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _DyingHandles(Handles):
    death = ""

    def add_file(self, file: OpenFile, flags: int, request: Request) -> Opened:
        if self.death == "before":
            _die()
        opened = super().add_file(file, flags, request)
        if self.death == "after":
            _die()
        return opened


class _DyingSession(Session):
    death: int | None = None

    def _reply(self, request: Request, code: int, answer: bytes | bytearray | memoryview) -> None:
        if request.opcode == self.death:
            _die()
        super()._reply(request, code, answer)


class _WaitingDevice(Device):
    def ask_again(self) -> None:
        super().ask_again()
        with open(_GATE, "rb") as gate:
            gate.read()


class _DyingDaemon(Daemon):
    def __init__(self, spec: MountSpec, made: MadeMount, inheritance: Inheritance) -> None:
        generation = inheritance.generation
        death = _DEATHS[generation] if generation < len(_DEATHS) else ""
        _DyingHandles.death = death
        _DyingSession.death = Opcode[death] if death.isupper() else None
        if generation == len(_DEATHS) and _GATE:
            inheritance = replace(inheritance, device=_WaitingDevice(inheritance.device.fd))
        super().__init__(spec, made, inheritance)


# They are nobody's to export.
setattr(daemon, "Handles", _DyingHandles)  # noqa: B010
setattr(daemon, "Session", _DyingSession)  # noqa: B010
setattr(daemon, "Daemon", _DyingDaemon)  # noqa: B010
runpy.run_module("fuse_tier.fs", run_name="__main__")
