"""What one node has to itself: its RAM tier and its sockets. Nothing of another, living node is ever taken.

Both claims end with the process that made them, however it ends; files that are left over are no claim.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from fuse_tier.errors import ConfigError
from fuse_tier.ram.layout import Layout


class Taken(ConfigError):
    """A living process has it."""


_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred, unix(7): pid, uid, gid


def refuse_taken_ram_tier(layout: Layout) -> None:
    """Raises ConfigError when another node has this RAM tier, which need not be there yet. Changes nothing."""
    with ExitStack() as stack:
        try:
            lock = os.open(layout.node_lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return  # nobody has ever had it; what is wrong with the path otherwise shows when it is prepared
        stack.callback(os.close, lock)
        _lock(lock, layout)


@contextmanager
def ram_tier_claimed(layout: Layout) -> Iterator[None]:
    """Holds a RAM tier, which is there. Raises ConfigError when another node has it."""
    with ExitStack() as stack:
        try:
            lock = os.open(layout.node_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"ram.path: {layout.node_lock} cannot be opened: {error.strerror}") from error
        stack.callback(os.close, lock)
        _lock(lock, layout)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield


def _lock(lock: int, layout: Layout) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise Taken(
            f"ram.path: {layout.root} belongs to a node that runs already (pid {owner}): "
            "end that one, or give this node a RAM tier of its own"
        ) from None


def refuse_taken_socket(path: str) -> None:
    """Raises ConfigError when somebody listens on the unix socket ``path``, or it is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"socket: {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"socket: {path} is there and is no socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            raise Taken(f"socket: {path} is in use by a process that is too busy to answer") from None
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
            raise ConfigError(f"socket: {path} cannot be used: {error.strerror}") from error
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    owner, _, _ = _CREDENTIALS.unpack(credentials)
    raise Taken(
        f"socket: {path} is in use by a process that runs already (pid {owner}): end that one, or choose another path"
    )
