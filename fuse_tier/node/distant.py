"""A keeper in another container, whose process means nothing here: known by its lock and its word alone."""

from __future__ import annotations

import os
from typing import Final

import structlog
import trio

from fuse_tier.mount import control
from fuse_tier.mount.claim import Record, is_held, read_record
from fuse_tier.node.processes import Process

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS: Final = 0.05


class DistantKeeper(Process):
    """Ends when its mount is nobody's any more, or another keeper's."""

    def __init__(self, path: str, record: Record) -> None:
        self.name = "keeper"
        self.pid = 0
        self._path = path
        self._record = record
        self._ended = False

    async def wait(self) -> int | None:
        """Returns when another keeper has the mount, or none."""
        while not self._ended and is_held(self._path):
            now = read_record(self._path)
            if now is not None and (now.pid, now.container) != (self._record.pid, self._record.container):
                break
            await trio.sleep(_LOOK_EVERY_SECONDS)
        self._ended = True
        return None

    def kill(self) -> None:
        """Its mount ends, and so does it: its process is out of reach."""
        try:
            with control.connections() as directory:
                control.abort(directory, os.minor(self._record.device))
        except OSError as error:
            log.warning(
                "process.unreachable", process=self.name, mountpoint=self._record.mountpoint, reason=str(error)
            )

    def signal(self, number: object) -> None:
        """Any signal that it would get here is to end it."""
        if not self._ended:
            self.kill()

    def close(self) -> None:
        """Nothing is held."""
