"""A keeper whose daemons die by their own hand while they answer an open: ``python -m tests.fs.dying GATE DEATH...``.

Each death is that of one daemon, in their order, at the first file that it opens: ``before`` its handle is with the
keeper, or ``after``, when only the answer is missing. The first daemon that is to live waits, as soon as it has had
the kernel give requests out again, until somebody has opened the pipe GATE for writing and closed it.
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
from fuse_tier.fs.spec import MountSpec
from fuse_tier.mount.device import Device
from fuse_tier.mount.keeper import Inheritance

_GATE, *_DEATHS = sys.argv[1:]
del sys.argv[1:]


class _DyingHandles(Handles):
    death = ""

    def add_file(self, file: OpenFile, flags: int, request: Request) -> Opened:
        if self.death == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        opened = super().add_file(file, flags, request)
        if self.death == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return opened


class _WaitingDevice(Device):
    def ask_again(self) -> None:
        super().ask_again()
        with open(_GATE, "rb") as gate:
            gate.read()


class _DyingDaemon(Daemon):
    def __init__(self, spec: MountSpec, made: MadeMount, inheritance: Inheritance) -> None:
        generation = inheritance.generation
        _DyingHandles.death = _DEATHS[generation] if generation < len(_DEATHS) else ""
        if generation == len(_DEATHS):
            inheritance = replace(inheritance, device=_WaitingDevice(inheritance.device.fd))
        super().__init__(spec, made, inheritance)


setattr(daemon, "Handles", _DyingHandles)  # noqa: B010 - it is nobody's to export
setattr(daemon, "Daemon", _DyingDaemon)  # noqa: B010
runpy.run_module("fuse_tier.fs", run_name="__main__")
