"""What a daemon leaves with its keeper, so that the next daemon has it: descriptors that no name leads to.

A daemon may be killed at any instant. A file that is open in the job must stay open, also when its name is gone; so
before the kernel hears of a handle, its descriptor is in the keeper's socket. It need not have been received: what is
in a socket outlives who sent it. The keeper therefore reads in batches, and is not woken for each.

The next daemon is forked from the keeper, and so simply has the descriptors that the keeper has.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from threading import Lock
from typing import Final

from fuse_tier.deadlines import Deadline

_RECORD: Final = Struct("=BBHiQQQ")  # kind, writes, answer, backing id, key, inode, unique
_REMOVE: Final = 0
_ACKNOWLEDGE: Final = 255
_READY: Final = 254
_YES: Final = b"1"
_NO: Final = b"0"
_PATIENCE_SECONDS: Final = 1.0
_SO_PEEK_OFF: Final = 42  # asm-generic/socket.h
_ROOM_BYTES: Final = 4 << 20
_ORPHAN_KEY: Final = 1 << 63  # handles never have these bits
WORD_KEY: Final = 1 << 62


class Kind(IntEnum):
    """What a deposit is."""

    FILE = 1
    """An open file; the key is its handle."""
    LISTING = 2
    """The names of a directory that is being read, each ended by a zero byte; the key is the directory's handle."""
    ORPHAN = 3
    """Something without a name that the kernel knows."""
    WORD = 4
    """Of nothing: word of a request that was begun and must not be done twice, and of its inode; one at most."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """One descriptor, and what it is."""

    kind: Kind
    key: int
    inode: int = 0
    unique: int = 0
    """The request that it was opened for."""
    backing: int = 0
    """For a file that the kernel reads and writes by itself: its number there."""
    writes: bool = False
    answer: int = 0
    """What tells the kernel of a file, but for what else stands here (fs/handles.py); 0 where nobody knows."""

    @classmethod
    def of_orphan(cls, inode: int) -> Deposit:
        """Of an inode without a name."""
        return cls(Kind.ORPHAN, orphan_key(inode), inode)


def orphan_key(inode: int) -> int:
    """Under which an orphan is left."""
    return _ORPHAN_KEY | inode


class Depositor:
    """The daemon's end. ``leave`` and ``remove`` block only while the keeper is far behind."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._removed = False
        self._settling = Lock()

    def leave(self, deposit: Deposit, fd: int) -> None:
        """Gives the keeper a copy of a descriptor, in place of what it had under this key. Raises OSError."""
        self.pass_on(
            _RECORD.pack(
                deposit.kind,
                deposit.writes,
                deposit.answer,
                deposit.backing,
                deposit.key,
                deposit.inode,
                deposit.unique,
            ),
            fd,
        )

    def pass_on(self, record: bytes, fd: int) -> None:
        """One change as ``Safe.shown`` are told it. Raises OSError."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, "little", signed=True))
        self._connection.sendmsg([record], [rights] if fd >= 0 else [])

    def remove(self, key: int) -> None:
        """The keeper closes what it has under this key, if anything."""
        self._removed = True
        self._connection.send(_RECORD.pack(_REMOVE, 0, 0, 0, key, 0, 0))

    def settle(self) -> None:
        """Blocks for milliseconds, until the keeper has closed what was removed. Any thread may call it."""
        with self._settling:
            if self._removed:
                self._removed = False
                self._ask(_ACKNOWLEDGE, _PATIENCE_SECONDS)

    def may_serve(self) -> bool:
        """Asks, before the first request of the kernel is read, whether the mount is this keeper's by now. Blocks."""
        return self._ask(_READY, Deadline.HAND_OVER + _PATIENCE_SECONDS) == _YES

    def _ask(self, kind: int, patience_seconds: float) -> bytes:
        self._connection.send(_RECORD.pack(kind, 0, 0, 0, 0, 0, 0))
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        return self._connection.recv(1) if waiting.poll(patience_seconds * 1000) else b""


class Safe:
    """The keeper's end: what all daemons so far have left."""

    def __init__(self) -> None:
        self.contents: dict[int, tuple[Deposit, int]] = {}
        """Deposits and their descriptors, by key."""
        self.highest_backing = 0
        """Of the numbers that were ever left; they are given out in ascending order."""
        self.shown: list[Callable[[bytes, int], None]] = []
        """Are told of each change before it counts as received, with the descriptor or -1: should this process end in
        between, another that was told has it all."""

    def put(self, deposit: Deposit, fd: int) -> None:
        """Takes a descriptor over."""
        self.remove(deposit.key)
        self.contents[deposit.key] = deposit, fd
        self.highest_backing = max(self.highest_backing, deposit.backing)

    def remove(self, key: int) -> None:
        """Closes what is there under a key, if anything."""
        found = self.contents.pop(key, None)
        if found is not None:
            os.close(found[1])

    def receive(self, connection: socket.socket, may_serve: Callable[[], bool] = lambda: True) -> bool:
        """Takes all that has arrived on a non-blocking socket; False once the daemon's end of it is closed."""
        while True:
            try:
                if not self._receive_one(connection, may_serve):
                    return False
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False

    def overhear(self, connection: socket.socket) -> bool:
        """Takes what is there from ``listen_aside`` on, and leaves it there; False once the daemon has ended."""
        while True:
            try:
                record, fd = _receive(connection, socket.MSG_PEEK)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not record:
                return False
            if record[0] not in (_ACKNOWLEDGE, _READY):
                self.apply(record, fd)

    def take(self, connection: socket.socket, count: int) -> None:
        """Takes so many deposits of another keeper's. Raises OSError."""
        for _ in range(count):
            if not self._receive_one(connection, lambda: False):
                raise OSError(errno.ECONNRESET, "the keeper before this one ended in the middle of its deposits")
        if len(self.contents) != count:
            raise OSError(errno.EMFILE, f"{len(self.contents)} of {count} deposits arrived: descriptors ran out")

    def _receive_one(self, connection: socket.socket, may_serve: Callable[[], bool]) -> bool:
        if self.shown:
            record, fd = _receive(connection, socket.MSG_PEEK)
            if record and record[0] not in (_ACKNOWLEDGE, _READY):
                for show in tuple(self.shown):
                    show(record, fd)
            if fd >= 0:
                os.close(fd)
        record, fd = _receive(connection, 0)
        if not record:
            return False
        if record[0] in (_ACKNOWLEDGE, _READY):
            with suppress(OSError):  # who asked may be gone
                connection.send(_YES if record[0] == _ACKNOWLEDGE or may_serve() else _NO)
        else:
            self.apply(record, fd)
        return True

    def apply(self, record: bytes, fd: int) -> None:
        """One change, as those in ``shown`` are told it; takes the descriptor over."""
        kind, writes, answer, backing, key, inode, unique = _RECORD.unpack(record)
        if kind == _REMOVE:
            self.remove(key)
        elif fd >= 0:
            self.put(Deposit(Kind(kind), key, inode, unique, backing, bool(writes), answer), fd)

    def close(self) -> None:
        """Closes all."""
        for key in list(self.contents):
            self.remove(key)


def _receive(connection: socket.socket, flags: int) -> tuple[bytes, int]:
    record, ancillary, _, _ = connection.recvmsg(_RECORD.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC | flags)
    return record, array.array("i", ancillary[0][2])[0] if ancillary else -1


def listen_aside(connection: socket.socket) -> None:
    """From the first message that nobody has received, ``overhear`` begins; for one process at a time."""
    connection.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)


def connection_pair() -> tuple[socket.socket, socket.socket]:
    """A keeper's end, non-blocking, and a daemon's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
    ours.setblocking(False)
    return ours, theirs
