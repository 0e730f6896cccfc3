"""What the supervisor knows of a keeper: what that says of itself, over its socket (fs/reception.py).

A connection that is lost is made again, because another keeper may have taken the mount over. What a keeper said last
stays known, so that asking for the state of all mounts waits for none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, MountError
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity

log = structlog.get_logger(__name__)

_LONGEST_MESSAGE: Final = 1 << 16
_PAUSE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class KeeperState:
    """One message of a keeper's."""

    identity: str
    mountpoint: str
    device: int
    read_only: bool
    pid: int
    daemon: int
    """The daemon's process, 0 between two."""
    generation: int
    """Daemons that the mount has had before this one."""
    failures: int
    """Daemons in a row that ended soon after their start."""
    passthrough: bool
    plain_reason: str
    version: str
    settings: Mapping[str, Any]
    kept: bool
    reason: str
    """Why the mount has failed; empty while it has not."""
    container: str = ""
    """Where ``pid`` is that process's number; a keeper of an older version says nothing, and runs where we do."""

    @classmethod
    def parse(cls, message: bytes) -> KeeperState:
        """Raises MountError when it is none. What a newer keeper says beyond it is passed over."""
        try:
            said = json.loads(message)
            named = {field.name: said[field.name] for field in fields(cls) if field.default is MISSING}
            return cls(**named, container=said.get("container", ""))
        except (ValueError, TypeError, LookupError) as error:
            raise MountError(f"a keeper says {message[:200]!r}, which nobody understands") from error


def place_of(socket: str) -> str:
    """The directory of the keepers' sockets, of the node with this socket."""
    return f"{socket}.mounts"


def socket_of(directory: str, identity: Identity) -> str:
    """Where the keeper of a volume answers: a short name, because a unix socket's path is short."""
    return os.path.join(directory, hash_bytes(str(identity).encode()).digest[:8].hex())


def prepare_place(directory: str, wanted: frozenset[str]) -> None:
    """Makes the directory of keepers' sockets, or removes what those that are no more have left in it."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if path not in wanted:
            with suppress(OSError):
                os.unlink(path)


class KeeperLink:
    """The connection to the keeper of one mount, whichever that is at the time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.state: KeeperState | None = None
        """What was said last."""
        self._connection: trio.socket.SocketType | None = None
        self._heard = trio.Event()

    async def keep(self) -> KeeperState:
        """Tells the keeper that its mount is to stay, whatever becomes of this process; ``run`` hears its answer.

        Raises DeadlineExceeded.
        """
        with trio.move_on_after(Deadline.CHANNEL_CALL):
            while True:
                heard, connection = self._heard, self._connection
                if self.state is not None and self.state.kept:
                    return self.state
                if connection is not None:
                    with suppress(OSError):  # it is told again over the next connection
                        await connection.send(b'{"keep": true}')
                await heard.wait()
        raise DeadlineExceeded(f"the keeper at {self.path} did not answer within {Deadline.CHANNEL_CALL:g} s")

    async def run(self) -> None:
        """Listens, until it is cancelled."""
        while True:
            with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as connection:
                with suppress(OSError):  # it may be ending, or its successor is about to listen
                    await connection.connect(self.path)
                    self._connection = connection
                    await self._listen(connection)
                self._connection = None
            await trio.sleep(_PAUSE_SECONDS)

    async def _listen(self, connection: trio.socket.SocketType) -> None:
        while message := await connection.recv(_LONGEST_MESSAGE):
            try:
                self.state = KeeperState.parse(message)
            except MountError as error:
                log.warning("keeper.misspoke", reason=str(error))
                return
            self._heard.set()
            self._heard = trio.Event()
