"""The processes that a supervisor starts, and how each of them ends.

A worker belongs to the ``async with running(...)`` that started it: it is gone when that is left, however. It
has a session of its own: Ctrl-C reaches the supervisor alone, which ends its children in order, and its priority is
its own. It does not outlive a supervisor that was killed: the kernel kills it (PR_SET_PDEATHSIG), because its
addresses and sockets would be taken when the node is started again. It may die at any instant.

A keeper is started by ``start_lasting``, in a session of its own as well. Until it is told that its mount is to stay
(keepers.py), it dies with the supervisor too: nobody would know of the mount. From then on it outlives it, and the
next supervisor finds it. What that did not start itself is a ``Process`` as well, known by its pidfd; only its exit
status is not for us to know.

The kernel counts as a parent the thread that started a child, so that is the main thread, which ends last:
a thread of trio's pool would take its children along when it idles. ``setpriv`` sets the signal, because code of
ours between fork and exec is unsafe in a process with threads.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, FuseTierError

log = structlog.get_logger(__name__)

_DIE_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL", "--")
_LONGEST_LINE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a process that ended is started again: ever longer, until it has held out."""

    first_seconds: float = 0.2
    longest_seconds: float = 10.0
    steady_seconds: float = 30.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, of which there is at least one."""
        # The exponent is bounded because a float is: failures may go on for weeks.
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))

    def count(self, failures: int, ran_seconds: float) -> int:
        """The failures in a row, with one more after the process had run for ``ran_seconds``."""
        return 1 if ran_seconds >= self.steady_seconds else failures + 1


class Process:
    """A process on this machine, ours or not, that no other can be mistaken for."""

    def __init__(self, name: str, pid: int) -> None:
        """Raises ProcessLookupError when there is none, OSError."""
        self.name = name
        self.pid = pid
        self._handle = os.pidfd_open(pid)
        self._ended = False
        self._waiting = trio.Lock()

    async def wait(self) -> int | None:
        """Its exit status once it has ended, or minus the number of the signal that ended it; None if not ours."""
        async with self._waiting:
            if not self._ended:
                await trio.lowlevel.wait_readable(self._handle)
                self._ended = True
        return None

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        if not self._ended:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """Ends it at once, with what it has started. Any thread may call this."""
        self.signal(signal.SIGKILL)

    async def end(self, grace_seconds: float, hurry: trio.Event | None = None) -> None:
        """SIGTERM; a second one after ``grace_seconds``, or once ``hurry`` is set; SIGKILL when that doesn't help."""
        for patience_seconds, sooner in ((grace_seconds, hurry), (Deadline.HURRIED_STOP, None)):
            self.signal(signal.SIGTERM)
            with trio.move_on_after(patience_seconds) as patience:
                async with trio.open_nursery() as nursery:
                    if sooner is not None:
                        nursery.start_soon(_cancel_when, sooner, patience)
                    await self.wait()
                    nursery.cancel_scope.cancel()
            if self._ended:
                return
        log.warning("process.killed", process=self.name, pid=self.pid, reason="still running after SIGTERM")
        await self.destroy()

    async def destroy(self) -> None:
        """Kills it, if it still runs, and waits until it is gone. Not to be cancelled."""
        self.kill()
        with trio.move_on_after(Deadline.THREAD_SHUTDOWN, shield=True) as patience:
            await self.wait()
        if patience.cancelled_caught:
            # In the kernel, waiting for a device or for a FUSE filesystem: nothing that we do would end it.
            log.error("process.unkillable", process=self.name, pid=self.pid)

    def close(self) -> None:
        """Lets it go: it runs on, if it does."""
        os.close(self._handle)


class Child(Process):
    """A process of ours. Made by ``running`` and ``start_lasting``."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output: trio.lowlevel.FdStream) -> None:
        super().__init__(name, process.pid)
        self._process = process
        self._output = output
        self._unread = bytearray()

    async def wait(self) -> int:
        """Its exit status once it has ended, or minus the number of the signal that ended it."""
        async with self._waiting:
            if self._process.returncode is None:
                await trio.lowlevel.wait_readable(self._handle)
                # Still a zombie, so that its number cannot be another's yet. What it leaves behind goes with it.
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
                self._ended = True
        return self._process.returncode

    async def next_line(self) -> dict[str, Any] | None:
        """What it says next on its standard output, a JSON object on a line of its own; None at the end of all.

        Raises FuseTierError for anything else.
        """
        while b"\n" not in self._unread and len(self._unread) < _LONGEST_LINE:
            received = await self._output.receive_some(_LONGEST_LINE)
            if not received:
                break
            self._unread += received
        line, _, rest = bytes(self._unread).partition(b"\n")
        self._unread[:] = rest
        if not line:
            return None
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise FuseTierError(f"the {self.name} (pid {self.pid}) printed {line[:200]!r}, which nobody understands")
        return said

    def kill(self) -> None:
        """Ends it at once, with all processes that it has started in its group. Any thread may call this."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Lets it go: it runs on, if it does, and nobody reads what it says."""
        self._output.close()
        super().close()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def check_starter() -> None:
    """Raises ConfigError when this machine lacks what processes are started with."""
    if shutil.which(_DIE_WITH_PARENT[0]) is None:
        raise ConfigError(f"{_DIE_WITH_PARENT[0]} is missing: install Debian's package util-linux")


@asynccontextmanager
async def running(command: Sequence[str], name: str, *, told: str = "") -> AsyncIterator[Child]:
    """Starts a process; when the block is left it is killed, if it still runs, and gone.

    ``told`` is what it reads on its standard input. Its standard output is ours to read, its standard error
    goes where ours goes. A command that can't be run shows as a child that ends with status 127.
    """
    child = _start(command, name, told)
    try:
        yield child
    finally:
        await child.destroy()
        child.close()


def start_lasting(command: Sequence[str], name: str, *, told: str = "") -> Child:
    """The same for a process that may outlive this one; whoever starts it ends it or lets it go."""
    return _start(command, name, told)


def _start(command: Sequence[str], name: str, told: str) -> Child:
    with ExitStack() as stack:
        # Not a pipe: that could fill before the child reads.
        standard_input = os.memfd_create("standard-input")
        stack.callback(os.close, standard_input)
        os.write(standard_input, told.encode())
        os.lseek(standard_input, 0, os.SEEK_SET)
        ours, theirs = os.pipe()
        stack.callback(os.close, theirs)
        try:
            process = begin(command, stdin=standard_input, stdout=theirs)
        except BaseException:
            os.close(ours)
            raise
    return Child(name, process, trio.lowlevel.FdStream(ours))


def begin(command: Sequence[str], *, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    """Starts a process, in a session of its own, that dies with this one unless it decides otherwise."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a child would die with this thread: start it in the main thread")
    # Milliseconds, for which the supervisor's loop can stand still: it carries no data.
    return subprocess.Popen(
        [*_DIE_WITH_PARENT, *command],
        stdin=stdin,
        stdout=stdout,
        start_new_session=True,
    )


def describe(status: int | None) -> str:
    """A status in words that follow the name of a process."""
    if status is None:
        return "ended"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
