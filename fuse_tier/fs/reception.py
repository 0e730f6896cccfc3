"""Where a keeper is visited: by the supervisor of its node, whichever that is at the time, and by a successor.

A unix socket of whole messages (SOCK_SEQPACKET), the owner's alone. A visitor is told the state of the mount at once,
as one JSON object, and again whenever that changes, to the last: the keeper's end closes the connection. It may say:

    {"keep": true}      who asked for the mount knows of it: it stays if the supervisor dies
    {"hand_over": 1}    "I am your successor": fs/handover.py
    {"copy": 1}         "I keep what you have, should you end": fs/copy.py

A visitor that does not read what it is told is dropped, and so is the oldest of too many. Nothing that a visitor does
stops the keeper. Of those that have a copy there may be eight.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog

from fuse_tier.errors import MountError
from fuse_tier.fs.copy import COPIED, Copy
from fuse_tier.fs.handover import ASKED, FORM, LONGEST_MESSAGE
from fuse_tier.mount.keeper import Keeper

log = structlog.get_logger(__name__)

_BACKLOG: Final = 8
_VISITORS: Final = 16
_COPIES: Final = 8


def listen(path: str) -> socket.socket:
    """The socket at ``path``, in place of one that a dead keeper has left. Raises MountError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise MountError(f"the keeper's socket {path} cannot be made: {error.strerror or error}") from error
    return listener


class Reception:
    """Receives the visitors of one keeper, in its loop."""

    def __init__(
        self,
        listener: socket.socket,
        keeper: Keeper,
        describe: Callable[[], dict[str, Any]],
        keep: Callable[[], None],
        hand_over: Callable[[socket.socket], bool],
        copy_to: Callable[[Keeper, socket.socket], Copy | None],
    ) -> None:
        self._listener = listener
        self._keeper = keeper
        self._describe = describe
        self._keep = keep
        self._hand_over = hand_over
        self._copy_to = copy_to
        self._copies: list[Copy] = []  # the oldest first
        self._visitors: dict[socket.socket, None] = {}  # the longest here first

    def open(self) -> None:
        """Receives from now on."""
        self._listener.setblocking(False)
        self._keeper.attend(self._listener.fileno(), self._accept)
        self._keeper.changed = self.announce

    def announce(self) -> None:
        """Tells all the state."""
        message = json.dumps(self._describe()).encode()
        for visitor in list(self._visitors):
            try:
                visitor.send(message)
            except OSError:  # it has gone, or does not read
                self._drop(visitor)
        for copy in self._copies:
            copy.renew()

    def end_copies(self) -> None:
        """Whoever has a copy of all is told that it is not needed any more."""
        for copy in self._copies:
            copy.end()
        self._copies.clear()

    def _make_copy(self, visitor: socket.socket) -> None:
        self._copies = [copy for copy in self._copies if copy.is_open]
        if len(self._copies) >= _COPIES:
            self._copies.pop(0).close()
        self._leave_alone(visitor)
        copy = self._copy_to(self._keeper, visitor)
        if copy is None:
            visitor.close()  # it asks again
        else:
            self._copies.append(copy)

    def _accept(self) -> None:
        try:
            visitor, _ = self._listener.accept()
        except OSError as error:
            log.info("visitor.not_received", reason=str(error))
            return
        if len(self._visitors) >= _VISITORS:
            self._drop(next(iter(self._visitors)))
        visitor.setblocking(False)
        self._visitors[visitor] = None
        self._keeper.attend(visitor.fileno(), lambda: self._hear(visitor))
        self.announce()

    def _drop(self, visitor: socket.socket) -> None:
        self._leave_alone(visitor)
        visitor.close()

    def _leave_alone(self, visitor: socket.socket) -> None:
        self._visitors.pop(visitor, None)
        self._keeper.ignore(visitor.fileno())

    def _hear(self, visitor: socket.socket) -> None:
        try:
            message = visitor.recv(LONGEST_MESSAGE)
            said = json.loads(message) if message else None
        except BlockingIOError:
            return
        except (OSError, ValueError):
            said = None
        if not isinstance(said, dict):
            self._drop(visitor)
        elif said.get("keep"):
            self._keep()
            self.announce()
        elif said.get(ASKED) == FORM and self._keeper.handshake.resends:
            self._leave_alone(visitor)
            self._keeper.make_way(lambda: self._hand_over(visitor))
        elif said.get(COPIED) == FORM and self._keeper.handshake.resends:
            self._make_copy(visitor)
        else:
            # Another form of handover than ours; or a kernel that would not give out again what a daemon had read.
            self._drop(visitor)
