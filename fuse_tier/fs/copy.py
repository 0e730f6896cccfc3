"""A copy of all that a mount is kept with, in a process that dies apart from the keeper: node/vault.py. There may be
several.

A keeper and its daemon may end together, with the container that both run in. Whoever has a copy then holds
/dev/fuse, so that those who use the mount wait, and what the next daemon needs; and gives all to the next keeper.

The copy gets what a successor would get (handover.py), then each deposit before it counts as received here, and with
every new daemon the keeper's own end of that one's connection: what a dying daemon has sent is not lost with the
keeper. A receiver that does not keep up is dropped, and may ask again.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fuse_tier.deadlines import Deadline
from fuse_tier.fs.handover import Estate, tell
from fuse_tier.mount.deposits import Depositor
from fuse_tier.mount.keeper import Keeper

COPIED: Final = "copy"
ENDED: Final = b'{"ended": true}'
RENEWED: Final = "renewed"
_ROOM_BYTES: Final = 4 << 20


class Copy:
    """The keeper's end. Nothing that the receiver does stops the keeper."""

    def __init__(self, estate: Callable[[], Estate], keeper: Keeper, receiver: socket.socket) -> None:
        self._estate = estate
        self._keeper = keeper
        self._receiver = receiver
        self._depositor = Depositor(receiver)
        self._said: tuple[int, tuple[int, ...], int] | None = None
        self._open = True
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
        receiver.settimeout(Deadline.HAND_OVER)
        try:
            tell(estate(), receiver)
        except OSError:  # it has gone, or does not read
            self.close()
            return
        receiver.setblocking(False)
        keeper.attend(receiver.fileno(), self._hear)
        keeper.safe.shown.append(self._show)
        self.renew()

    @property
    def is_open(self) -> bool:
        """Whether the receiver still has it, and keeps up."""
        return self._open

    def renew(self) -> None:
        """Tells what is another than before: the daemon, or the signals that it was told to end by."""
        if not self._open:
            return
        keeper = self._keeper
        deposits = keeper.deposits.fileno() if keeper.deposits is not None else -1
        now = (keeper.generation, tuple(keeper.told), deposits)
        if deposits < 0 or now == self._said:
            return
        self._said = now
        message = json.dumps({RENEWED: keeper.generation, "told": keeper.told}).encode()
        try:
            socket.send_fds(self._receiver, [message], [deposits])
        except OSError:
            self.close()

    def end(self) -> None:
        """The mount has ended, or is another keeper's: the copy is of no use any more."""
        if self._open:
            with suppress(OSError):
                self._receiver.send(ENDED)
            self.close()

    def close(self) -> None:
        """Lets the receiver go."""
        if self._open:
            self._open = False
            if self._show in self._keeper.safe.shown:
                self._keeper.safe.shown.remove(self._show)
            self._keeper.ignore(self._receiver.fileno())
            self._receiver.close()

    def _show(self, record: bytes, fd: int) -> None:
        try:
            self._depositor.pass_on(record, fd)
        except OSError:
            self.close()

    def _hear(self) -> None:
        """It has nothing more to say, but may go."""
        try:
            if not self._receiver.recv(1):
                self.close()
        except BlockingIOError:
            return
        except OSError:
            self.close()
