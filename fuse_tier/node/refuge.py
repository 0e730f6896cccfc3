"""``python -m fuse_tier.node.refuge``: a vault outside of all containers, for when all of them end at one instant.

The supervisor starts it, from a container that shares the machine's process numbers (``hostPID``). It leaves that
container's cgroups, which is where a runtime looks for what it has to kill, and its terminal, and stays when the
container goes. It holds copies of what this node's mounts are kept with until the next driver has them, for
``Deadline.STRANDED`` at most: then those who use a mount get an error rather than wait for ever. It ends by itself
when there has been no mount for a while, and when one of another version has come.

Invariant: one per node stays, the one that has the lock of ``<socket>.refuge``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import structlog
import trio

from fuse_tier import logs
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.fs.syscalls import raise_descriptor_limit
from fuse_tier.fs.version import code_version
from fuse_tier.mount.container import may_be_outlived
from fuse_tier.node.keepers import place_of
from fuse_tier.node.priority import KEEPING, protect
from fuse_tier.node.vault import Vault

log = structlog.get_logger(__name__)

_CLONE_NEWCGROUP: Final = 0x02000000  # linux/sched.h
_GROUP: Final = "fuse-tier"
_MEMORY_BYTES: Final = 256 << 20
_IDLE_SECONDS: Final = 60.0
_LOOK_EVERY_SECONDS: Final = 1.0
_TRIES: Final = 60


def lock_of(socket: str) -> str:
    """The file that the refuge of the node with this socket has locked; its pid and version stand in it."""
    return f"{socket}.refuge"


def version_at(socket: str) -> str:
    """Of the refuge that runs; empty for none. Blocks briefly."""
    try:
        with open(lock_of(socket)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return ""
    except FileNotFoundError:
        return ""
    except BlockingIOError:
        return _read(socket)[1]


def dismiss(socket: str) -> bool:
    """Whether there is no refuge. One that runs is told to end, which it does unless it stands in for a keeper.

    Blocks for a second at most.
    """
    try:
        with open(lock_of(socket)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        with suppress(ProcessLookupError, ValueError):
            _end(int(_read(socket)[0]))  # it still has the lock, so it is that process
        return False


def _end(pid: int) -> None:
    """Tells a process to end, and gives it a moment for that."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        waiting.poll(1000 * _LOOK_EVERY_SECONDS)
    finally:
        os.close(process)


def main(socket: str) -> int:
    """Runs it; gives the exit status."""
    logs.configure("refuge", "", logs.Lasting(sys.stderr))  # type: ignore[arg-type]
    try:
        leave_container()
        protect(KEEPING)
        raise_descriptor_limit()
        return trio.run(_run, socket)
    except (FuseTierError, OSError) as error:
        log.error("refuge.failed", reason=str(error))
        return 1


def leave_container() -> None:
    """Moves this process out of its container's cgroups. Raises FuseTierError, OSError."""
    if not may_be_outlived():
        raise FuseTierError("all that runs in this container ends with it: set hostPID in the driver's pod")
    first = _enter_first_namespace()
    for root, is_unified in _hierarchies(first):
        group = os.path.join(root, _GROUP) if is_unified else root
        os.makedirs(group, exist_ok=True)
        if is_unified:
            with suppress(OSError):  # where the machine bounds nobody's memory at this level
                _write(os.path.join(group, "memory.max"), _MEMORY_BYTES)
        _write(os.path.join(group, "cgroup.procs"), os.getpid())
    # Seen from a namespace of one's own, what is outside of that begins so.
    with open("/proc/self/cgroup") as groups:
        if not first and not any(line.split(":", 2)[2].startswith("/..") for line in groups):
            raise FuseTierError(
                "this process cannot leave its container: that has to be privileged, and the machine's process 1 "
                "to have no capability beyond its own"
            )


def remove_groups() -> None:
    """Takes away the control groups of the machine's that refuges were in, where none is in them any more."""
    for first in (True, False):
        with suppress(OSError):  # the machine's process 1 is not to be seen from here
            for root, is_unified in _hierarchies(first):
                if is_unified:
                    with suppress(OSError):  # there is none, or it is in use
                        os.rmdir(os.path.join(root, _GROUP))


def _enter_first_namespace() -> bool:
    """Of control groups, where the kernel allows it: with one of its own, a process may be held to its own part."""
    try:
        namespace = os.open("/proc/1/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return False
    try:
        return bool(ctypes.CDLL(None).setns(namespace, _CLONE_NEWCGROUP) == 0)
    finally:
        os.close(namespace)


def _hierarchies(first: bool) -> Iterator[tuple[str, bool]]:
    seen_by, root = ("1", "/proc/1/root") if first else ("self", "")
    with open(f"/proc/{seen_by}/mounts") as mounts:
        for line in mounts:
            _, path, kind, *_ = line.split()
            if kind in ("cgroup", "cgroup2"):
                yield root + path, kind == "cgroup2"


def _write(path: str, number: int) -> None:
    with open(path, "w") as file:
        file.write(str(number))


async def _run(socket: str) -> int:
    with open(lock_of(socket), "a+") as lock:  # noqa: ASYNC230 - a few bytes, and nobody else's turn
        if not await _take(lock.fileno(), socket):
            return 0
        lock.truncate(0)
        lock.write(f"{os.getpid()} {code_version()}\n")
        lock.flush()
        log.info("refuge.ready", pid=os.getpid())
        vault = Vault(place_of(socket), Deadline.STRANDED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vault.run)
            await _until_done(vault)
            nursery.cancel_scope.cancel()
    log.info("refuge.ended")
    return 0


async def _take(lock: int, socket: str) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pid, version = _read(socket)
        if version == code_version():
            return False
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(pid), signal.SIGTERM)  # it still has the lock, so it is that process
        await trio.sleep(_LOOK_EVERY_SECONDS)
    return False


def _read(socket: str) -> tuple[str, str]:
    with suppress(OSError), open(lock_of(socket)) as file:
        said = file.read().split()
        if len(said) == 2:
            return said[0], said[1]
    return "", ""


async def _until_done(vault: Vault) -> None:
    empty_since = trio.current_time()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        while trio.current_time() < empty_since + _IDLE_SECONDS:
            if not vault.is_empty:
                empty_since = trio.current_time()
            with trio.move_on_after(_LOOK_EVERY_SECONDS):
                async for number in signals:
                    if number == signal.SIGTERM and not vault.stands_in:
                        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
