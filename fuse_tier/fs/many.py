"""``python -m fuse_tier.fs.many``: keepers of many mounts, each a process forked from this one.

This process has loaded all that a keeper needs, and does nothing itself: so a keeper is there within milliseconds,
and what was loaded is in memory once for all mounts of a node. It has one thread, no mount, and no descriptor of the
kernel's.

It is asked over its standard input, a socket of whole messages: the parameters of a mount as fs/spec.py has them,
with the descriptor that becomes the keeper's standard output. It answers ``{"started": PID}`` with a descriptor of it
(pidfd), and says ``{"ended": PID, "status": N}`` of each that ends while this lives. Until it is told
that its mount stays, a keeper dies with this process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

import structlog

from fuse_tier import logs
from fuse_tier.fs.__main__ import keep
from fuse_tier.fs.handover import LONGEST_MESSAGE
from fuse_tier.fs.version import code_version
from fuse_tier.mount.parent import die_with_parent

log = structlog.get_logger(__name__)

_ASKED: Final = 0
_MODULE: Final = b"fuse_tier.fs.many"
_KEEPERS: Final = b"fuse_tier.fs"  # as they are called where each is a program of its own


def main() -> int:
    """Forks keepers until nobody asks any more; they go on."""
    logs.configure("fs", "", logs.Lasting(sys.stderr))  # type: ignore[arg-type]
    code_version()  # of the code that is loaded here, whatever is installed later
    asked = socket.socket(fileno=_ASKED)
    waker, wake = socket.socketpair()
    for end in (waker, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    waiting = select.poll()
    waiting.register(asked, select.POLLIN)
    waiting.register(waker, select.POLLIN)
    while True:
        ready = {fd for fd, _ in waiting.poll()}
        if waker.fileno() in ready:
            with suppress(BlockingIOError):
                waker.recv(1 << 12)
            _tell_ends(asked)
        if asked.fileno() in ready:
            try:
                message, fds, _, _ = socket.recv_fds(asked, LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:  # whoever asked was killed with something unread
                return 0
            if not message:
                return 0
            _fork(asked, message.decode(), fds[0], (waker, wake))


def _fork(asked: socket.socket, spec: str, output: int, ours: tuple[socket.socket, ...]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = _be_keeper(spec, output, parent, (asked, *ours))
        except BaseException:
            log.exception("keeper.failed")
        finally:
            os._exit(status)
    os.close(output)
    handle = os.pidfd_open(pid)
    with suppress(OSError):  # whoever asked has gone; the keeper goes with us
        socket.send_fds(asked, [json.dumps({"started": pid}).encode()], [handle])
    os.close(handle)


def _be_keeper(spec: str, output: int, parent: int, not_ours: tuple[socket.socket, ...]) -> int:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != parent:
        return 1
    os.setsid()
    for end in not_ours:
        end.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.close(nothing)
    os.close(output)
    _rename()
    return keep(spec)


def _rename() -> None:
    """Shows this process as the program that it is now, to people and to who looks for keepers."""
    # The command line stands where field 48 says (proc(5)); no shorter one needs more room.
    with open("/proc/self/stat") as stat:
        first, last = map(int, stat.read().rpartition(")")[2].split()[45:47])
    if not first:
        return
    shown = ctypes.string_at(first, last - first)
    at = shown.rfind(_MODULE)
    if at >= 0:
        ctypes.memmove(first + at, _KEEPERS.ljust(len(_MODULE), b"\0"), len(_MODULE))


def _tell_ends(asked: socket.socket) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            message = json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}).encode()
            with suppress(OSError):
                asked.send(message)


if __name__ == "__main__":
    sys.exit(main())
