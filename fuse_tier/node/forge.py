"""Starts keepers: each as a program of its own, or forked from one that has everything loaded (fs/many.py).

The second way takes milliseconds, and what was loaded is in memory once. The process that keepers are forked from is
started when it is needed, and again when it has died; keepers that are to stay go on without it.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import MountError
from fuse_tier.node.processes import Child, begin, start_lasting

log = structlog.get_logger(__name__)

_LONGEST_MESSAGE: Final = 1 << 16
_STATUS_SECONDS: Final = 1.0


class Forge:
    """For one supervisor. ``nursery`` owns who listens to the process that keepers are forked from."""

    def __init__(self, command: Sequence[str], many: Sequence[str] | None, nursery: trio.Nursery) -> None:
        self._command = command
        self._many = many
        """The command of that process; None for keepers that are programs of their own."""
        self._nursery = nursery
        self._connection: trio.socket.SocketType | None = None
        self._asking = trio.Lock()
        self._answers: list[tuple[int, int]] = []
        self._answered = trio.Event()
        self._forged: dict[int, _Forged] = {}

    async def start(self, told: str) -> Child:
        """A keeper, given its parameters. Whoever starts it ends it or lets it go. Raises MountError."""
        if self._many is None:
            return start_lasting(self._command, "keeper", told=told)
        started: list[Child] = []
        # Not cancelled: nobody would know of what is started then.
        with trio.CancelScope(shield=True):
            async with self._asking:
                started += await self._fork(self._many, told)
        if not started:
            raise MountError("no keeper could be started: the process that they are forked from ended: see its log")
        return started[0]

    async def _fork(self, many: Sequence[str], told: str) -> list[Child]:
        if self._connection is None:
            self._connection, process = self._begin(many)
            self._nursery.start_soon(self._listen, self._connection, process)
        ours, theirs = os.pipe()
        self._answers, self._answered = [], trio.Event()
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs]))]
            with trio.move_on_after(Deadline.SUPERVISOR_CONNECT), suppress(OSError):
                await self._connection.sendmsg([told.encode()], rights)
                await self._answered.wait()
        finally:
            os.close(theirs)
        if not self._answers:
            os.close(ours)
            return []
        ((pid, handle),) = self._answers
        child = self._forged[pid] = _Forged(pid, handle, ours)
        return [child]

    @staticmethod
    def _begin(many: Sequence[str]) -> tuple[trio.socket.SocketType, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = begin(many, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        log.info("forge.started", pid=process.pid)
        ours.setblocking(False)
        return trio.socket.from_stdlib_socket(ours), process

    async def _listen(self, connection: trio.socket.SocketType, process: subprocess.Popen[bytes]) -> None:
        try:
            with connection:
                await self._hear(connection)
        finally:
            # It ends with its connection, and keepers that are to stay do not: this only leaves no zombie behind.
            process.kill()
            process.wait()
        log.warning("forge.ended", reason="the next mount starts it again; mounts that are there go on")
        self._connection = None
        self._answered.set()

    async def _hear(self, connection: trio.socket.SocketType) -> None:
        while True:
            try:
                message, ancillary, _, _ = await connection.recvmsg(
                    _LONGEST_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                return
            if not message:
                return
            said = json.loads(message)
            if "started" in said:
                self._answers = [(said["started"], array.array("i", ancillary[0][2])[0])]
                self._answered.set()
            elif (child := self._forged.pop(said["ended"], None)) is not None:
                child.note(said["status"])


class _Forged(Child):
    """A keeper that is another process's child."""

    def __init__(self, pid: int, handle: int, output: int) -> None:
        self.name = "keeper"
        self.pid = pid
        self._handle = handle
        self._ended = False
        self._waiting = trio.Lock()
        self._output = trio.lowlevel.FdStream(output)
        self._unread = bytearray()
        self._status: int | None = None
        self._noted = trio.Event()

    def note(self, status: int) -> None:
        """Its parent knows its exit status."""
        self._status = status
        self._noted.set()

    async def wait(self) -> int | None:  # type: ignore[override]
        """Its exit status once it has ended; None when nobody knows that any more."""
        async with self._waiting:
            if not self._ended:
                await trio.lowlevel.wait_readable(self._handle)
                self._ended = True
                with trio.move_on_after(_STATUS_SECONDS):
                    await self._noted.wait()
        return self._status

    def kill(self) -> None:
        """Ends it at once; its daemon ends with it. Any thread may call this."""
        super(Child, self).kill()
