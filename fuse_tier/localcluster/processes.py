"""A process with all its descendants, and what they leave mounted: started, ended, killed without a trace.

Descendants are found by a mark in their environment, so a daemon whose parent was killed, or that made a
session of its own, still belongs to its family. Invariant: after ``kill`` none of them runs.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from fuse_tier.errors import DeadlineExceeded, FuseTierError

_MARK = "FUSE_TIER_LOCAL_PROCESS"
# However this process ends, those that it started end too.
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
_KILL_SECONDS = 10.0
_LOG_TAIL_LINES = 15
_LOG_LINE = 500


class Family:
    """One started process and whatever it starts.

    ``log`` takes what they write to stderr, which is their log; stdout goes to a file beside it. ``through`` is a
    command that runs another in its own process, such as nsenter(1).
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, through: Sequence[str] = ()) -> None:
        self.name = name
        self.log = log
        self.environment: dict[str, str] = {}  # added to ours at the next start
        self._through = list(through)
        self._command = list(command)
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        self._head: subprocess.Popen[bytes] | None = None

    @property
    def _out(self) -> Path:
        return self.log.with_suffix(".out")

    @property
    def pid(self) -> int:
        """Of the process that was started. Raises FuseTierError when it is not running."""
        if self._head is None:
            raise FuseTierError(f"{self.name} is not running")
        return self._head.pid

    @property
    def runs(self) -> bool:
        """Whether the process that was started has not ended."""
        return self._head is not None and self._head.poll() is None

    def start(self) -> None:
        """Starts it in a session of its own, away from the terminal's signals."""
        key, _, value = self._mark.partition("=")
        with self.log.open("ab") as log, self._out.open("wb") as out:
            self._head = subprocess.Popen(
                [*_DIE_WITH_PARENT, *self._through, sys.executable, *self._command],
                env={**os.environ, **self.environment, key: value},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    async def terminate(self, deadline_seconds: float) -> int:
        """Asks it to end (SIGTERM) and gives its exit status. Raises DeadlineExceeded."""
        head = self._head
        if head is None:
            raise FuseTierError(f"{self.name} is not running")
        head.terminate()
        with trio.move_on_after(deadline_seconds) as scope:
            await _ended(head.pid)
        if scope.cancelled_caught:
            raise DeadlineExceeded(
                f"{self.name} (process {head.pid}) had not ended {deadline_seconds:g} s after SIGTERM; see {self.log}"
            )
        self._head = None
        return head.wait()

    async def behead(self, *dependents: str) -> None:
        """Kills the process that was started, and no other; those that run the modules ``dependents`` end with it.

        Returns when these are gone, so that ``start`` may follow.
        """
        head = self._head
        if head is None:
            raise FuseTierError(f"{self.name} is not running")
        theirs = {pid for module in dependents for pid in self.running(module)}
        head.kill()
        head.wait()
        self._head = None
        with trio.fail_after(_KILL_SECONDS):
            for pid in theirs:
                await _ended(pid)

    def members(self) -> set[int]:
        """The process ids of all that run, the started one among them."""
        return _marked(self._mark)

    def freeze(self) -> None:
        """Stops all (SIGSTOP), those too that were being started meanwhile."""
        frozen: set[int] = set()
        while new := self.members() - frozen:
            _send(new, signal.SIGSTOP)
            frozen |= new

    def thaw(self) -> None:
        """Lets all go on that were stopped."""
        _send(self.members(), signal.SIGCONT)

    def signal(self, pids: Iterable[int], number: signal.Signals) -> None:
        """Sends a signal to some of them."""
        _send(pids, number)

    def running(self, module: str) -> set[int]:
        """The process ids of those that run a Python module (``python -m``)."""
        return {pid for pid in self.members() if module.encode() in _command_line(pid)}

    async def kill(self) -> None:
        """Kills all at once (SIGKILL), as a node's death does, and returns when none is left."""
        self.freeze()
        pids = self.members()
        _send(pids, signal.SIGKILL)
        with trio.move_on_after(_KILL_SECONDS) as scope:
            for pid in pids:
                await _ended(pid)
        if scope.cancelled_caught:
            raise DeadlineExceeded(
                f"processes {sorted(pids)} of {self.name} survived SIGKILL for {_KILL_SECONDS:g} s"
            )
        if self._head is not None:
            self._head.wait()
            self._head = None

    def output(self) -> str:
        """What they wrote to stdout since it was started last."""
        return self._out.read_text(errors="replace")

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        if not self.log.exists():
            return "it wrote no log"
        lines = [line[:_LOG_LINE] for line in self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]]
        return "\n".join(["the end of its log:", *lines]) if lines else "its log is empty"


async def kill_all(families: Iterable[Family]) -> None:
    """Kills several; none lives to see another's end, and to complain about it."""
    families = list(families)
    for family in families:
        family.freeze()
    for family in families:
        await family.kill()


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has had resident (VmHWM, proc(5)), in MB. Raises FuseTierError."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise FuseTierError(f"there is no process {pid} any more")


def mounts_below(directory: Path) -> list[Path]:
    """Where something is mounted at or below a directory, innermost first. Touches none of the mounts."""
    found = []
    top = os.fsencode(os.path.realpath(directory.parent)) + b"/" + os.fsencode(directory.name)
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        place = _unescape(line.split(b" ")[4])
        if place == top or place.startswith(top + b"/"):
            found.append(Path(os.fsdecode(place)))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def detach_mounts(directory: Path) -> None:
    """Takes away whatever is mounted at or below a directory, also where nobody answers any more."""
    for place in mounts_below(directory):
        command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        done = subprocess.run([*command, str(place)], capture_output=True, text=True, check=False)
        if done.returncode and place in mounts_below(place):
            raise FuseTierError(f"{place} cannot be unmounted: {done.stderr.strip()}")


def _unescape(path: bytes) -> bytes:
    r"""Paths in mountinfo have blanks, tabs, newlines and backslashes as ``\ooo`` (proc_pid_mountinfo(5))."""
    for escaped, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escaped, plain)
    return path


def _marked(mark: str) -> set[int]:
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # ended meanwhile, or another user's
            if mark.encode() in Path(f"/proc/{entry.name}/environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def _command_line(pid: int) -> list[bytes]:
    with suppress(OSError):  # ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def _ended(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
