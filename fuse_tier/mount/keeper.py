"""The keeper of one mount: it holds /dev/fuse, and what daemons leave with it, and always has a daemon running.

It reads no requests but the kernel's first, and answers nothing: so there is little in it that can fail. Its daemons
are forked from it, which takes milliseconds and no memory for what both have in common, and inherit all that it
holds. docs/keeper.md has the states.

A keeper may be made with what another one kept (fs/handover.py). It serves only once ``commit`` has said that the
mount is its own by now: until then it is the other's, which goes on with it if this one fails.

Invariants: at most one daemon at a time; a daemon never outlives its keeper (the kernel kills it); a mount is not
taken away because a daemon died.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from fuse_tier.mount.deposits import Safe, connection_pair
from fuse_tier.mount.device import Device
from fuse_tier.mount.messages import Handshake
from fuse_tier.mount.parent import die_with_parent

log = structlog.get_logger(__name__)

FINAL_STATUS: Final = 3
"""A daemon that ends with this (or with 0) wants no successor: the mount has ended, in disorder."""
_READ_EVERY_SECONDS: Final = 0.02  # in which a daemon leaves a few hundred: so many fit into a socket anywhere
_MINUTE_SECONDS: Final = 60.0
TOLD: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a daemon may die: so often in a row before it lived for ``steady_seconds``, so often in a minute."""

    failures: int = 10
    steady_seconds: float = 0.25
    in_a_minute: int = 200
    at_once: int = 3
    """So many are started again without a pause."""
    first_seconds: float = 0.05
    longest_seconds: float = 2.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        if failures <= self.at_once:
            return 0.0
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - self.at_once - 1, 60))


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a daemon gets from its keeper, apart from this: ``TOLD`` signals are blocked until it listens to them."""

    device: Device
    handshake: Handshake
    safe: Safe
    deposits: socket.socket
    """Where it leaves what the next one shall have."""
    generation: int
    """0 for the first daemon of a mount."""


Serve = Callable[[Inheritance], int]
"""A daemon's life; gives its exit status."""


class Keeper:
    """Keeps one mount until its end. ``run`` blocks; signals are this process's, so it runs in the main thread."""

    def __init__(
        self,
        device: Device,
        handshake: Handshake,
        serve: Serve,
        *,
        safe: Safe | None = None,
        generation: int = 0,
        told: Iterable[int] = (),
        commit: Callable[[], bool] | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self.device = device
        self.handshake = handshake
        self.safe = safe or Safe()
        self.generation = generation
        self.told = list(told)
        """Signals that its daemons are to end by, in their order."""
        self.daemon = 0
        """Its pid, or 0 between two."""
        self.deposits: socket.socket | None = None
        """Where that leaves what the next one shall have; None between two."""
        self.failures = 0
        """Daemons in a row that ended soon after their start."""
        self.reason = ""
        """Why the mount has failed; empty while it has not."""
        self.given_away = False
        """Somebody else keeps the mount: nothing of it may be touched any more."""
        self.changed: Callable[[], None] = lambda: None
        """Called when anything above is another than before."""
        self._serve = serve
        self._commit = commit
        self._limits = limits
        self._last = 0
        self._ends: deque[float] = deque(maxlen=limits.in_a_minute)
        self._visitors: dict[int, Callable[[], None]] = {}
        self._hand_over: Callable[[], bool] | None = None

    def attend(self, fd: int, visited: Callable[[], None]) -> None:
        """Calls ``visited`` whenever a descriptor is readable."""
        self._visitors[fd] = visited

    def ignore(self, fd: int) -> None:
        """The reverse."""
        self._visitors.pop(fd, None)

    def make_way(self, hand_over: Callable[[], bool]) -> None:
        """Ends the daemon at once, wherever it is; ``hand_over`` says then whether somebody else keeps the mount."""
        self._hand_over = hand_over
        if self.daemon:
            os.kill(self.daemon, signal.SIGKILL)

    def run(self) -> int:
        """Keeps a daemon running until one says that the mount has ended; gives the exit status for this process.

        1 also when daemons die so fast that none can be kept running; the mount fails then for all who use it
        (ENOTCONN), as soon as this process ends.
        """
        waker, wake = socket.socketpair()
        with waker, wake:
            waker.setblocking(False)
            wake.setblocking(False)
            before = {number: signal.signal(number, lambda *_: None) for number in TOLD}
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            self.attend(waker.fileno(), lambda: self._pass_on(waker.recv(64)))
            try:
                return self._keep_serving(wake.fileno())
            finally:
                self.ignore(waker.fileno())
                signal.set_wakeup_fd(-1)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _keep_serving(self, wake: int) -> int:
        while True:
            hand_over, self._hand_over = self._hand_over, None
            if hand_over is not None:
                self.given_away = hand_over()
                if self.given_away:
                    return 0
            started = time.monotonic()
            status = self._run_daemon(wake)
            if self._commit is not None:  # it came to nothing before the mount was ours
                self.given_away = True
            if self.given_away:
                return 1
            if status in (0, FINAL_STATUS):
                return 0 if status == 0 else 1
            if self._hand_over is None and not self._may_go_on(status, time.monotonic() - started):
                return 1
            self.generation += 1

    def _may_serve(self) -> bool:
        commit, self._commit = self._commit, None
        if commit is not None and not commit():
            self.given_away = True
        return not self.given_away

    def _may_go_on(self, status: int, lived_seconds: float) -> bool:
        self.failures = 1 if lived_seconds >= self._limits.steady_seconds else self.failures + 1
        how = _describe(status)
        now = time.monotonic()
        too_often = len(self._ends) == self._ends.maxlen and now - self._ends[0] < _MINUTE_SECONDS
        self._ends.append(now)
        if not self.handshake.resends:
            self.reason = f"its daemon {how}, and this kernel does not repeat what it was asked (Linux 6.9 does)"
        elif self.failures >= self._limits.failures:
            self.reason = f"its daemon {how}, {self.failures} times in a row, each soon after its start: see its log"
        elif too_often:
            self.reason = f"its daemon {how}, for the {self._limits.in_a_minute}th time within a minute: see its log"
        if self.reason:
            log.error("mount.given_up", reason=self.reason)
            return False
        delay = self._limits.delay(self.failures)
        log.warning("daemon.ended", pid=self._last, reason=how, again_in_seconds=delay, failures=self.failures)
        until = time.monotonic() + delay
        self.changed()
        while self._hand_over is None and (left := until - time.monotonic()) > 0:
            self._attend_once(left)
        return True

    def _run_daemon(self, wake: int) -> int:
        ours, theirs = connection_pair()
        keeper = os.getpid()
        with ours:
            with theirs:
                # A signal that comes before the daemon listens waits for it: see ``Inheritance``.
                signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
                try:
                    pid = os.fork()
                    if pid == 0:
                        self._be_daemon(keeper, theirs, (wake, ours.fileno(), *self._visitors))
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
            self.daemon, self.deposits = pid, ours
            self.changed()
            handle = os.pidfd_open(pid)
            try:
                for number in self.told:
                    os.kill(pid, number)
                return self._watch(pid, handle, ours)
            finally:
                os.close(handle)
                self.daemon, self.deposits, self._last = 0, None, pid

    def _be_daemon(self, keeper: int, deposits: socket.socket, not_ours: Iterable[int]) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in TOLD:
                signal.signal(number, signal.SIG_DFL)
            die_with_parent()
            if os.getppid() != keeper:
                return  # it has ended before the kernel knew of this; what follows ends this process
            for fd in not_ours:
                os.close(fd)
            status = self._serve(Inheritance(self.device, self.handshake, self.safe, deposits, self.generation))
        except BaseException:
            log.exception("daemon.failed")
        finally:
            os._exit(status)

    def _watch(self, pid: int, handle: int, deposits: socket.socket) -> int:
        read_again = 0.0  # when the daemon's deposits are looked at the next time
        ended = False

        def note_end() -> None:
            nonlocal ended
            ended = True

        def receive() -> None:
            nonlocal read_again
            self.safe.receive(deposits, self._may_serve)
            self.ignore(deposits.fileno())
            read_again = time.monotonic() + _READ_EVERY_SECONDS

        self.attend(handle, note_end)
        try:
            while not ended:
                left = read_again - time.monotonic()
                if left <= 0:
                    self.attend(deposits.fileno(), receive)
                self._attend_once(left if left > 0 else None)
            _, status = os.waitpid(pid, 0)
            self.safe.receive(deposits)
            return os.waitstatus_to_exitcode(status)
        finally:
            self.ignore(handle)
            self.ignore(deposits.fileno())

    def _attend_once(self, seconds: float | None) -> None:
        waiting = select.poll()
        for fd in self._visitors:
            waiting.register(fd, select.POLLIN)
        for fd, _ in waiting.poll(None if seconds is None else max(1, seconds * 1000)):
            if (visited := self._visitors.get(fd)) is not None:
                visited()

    def _pass_on(self, numbers: bytes) -> None:
        self.told += numbers
        for number in numbers:
            if self.daemon:
                os.kill(self.daemon, number)


def _describe(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
