"""Where is listened, and why that may fail: TCP ports, and gRPC's unix sockets.

Unix sockets are made so that at no moment anybody but their owner can connect.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from contextlib import suppress

import grpc.aio
import trio

from fuse_tier.errors import ConfigError

UNIX = "unix:"
_BACKLOG = 4096  # of a coordinator that comes back, all nodes
_LONGEST_SOCKET_PATH = 107  # linux/un.h, UNIX_PATH_MAX without its NUL


async def listen_tcp(address: str) -> trio.socket.SocketType:
    """A listening socket at HOST:PORT; port 0 is a free one. Raises ConfigError naming the address."""
    host, _, port = address.rpartition(":")
    try:
        found = await trio.socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, target = found[0]
        listener = trio.socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listener.bind(target)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            cause = "the port is already in use: end the process that has it, or choose another port"
        raise ConfigError(f"cannot listen on {address}: {cause}") from error


def bind_unix(server: grpc.aio.Server, path: str) -> None:
    """Has gRPC listen on a socket that is its owner's alone. Raises ConfigError.

    It is made in a directory of our own first: at no moment may another user connect, and a stale file gives way.
    """
    try:
        if _answers(path):
            raise ConfigError(f"cannot listen on {path}: another process serves it; end that process first")
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".", prefix=".s") as private:
            temporary = os.path.join(private, "s")
            if len(os.fsencode(temporary)) > _LONGEST_SOCKET_PATH:
                raise ConfigError(f"cannot listen on {path}: the path is too long for a socket; choose a shorter one")
            server.add_insecure_port(f"{UNIX}{temporary}")
            os.chmod(temporary, 0o600)
            os.rename(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"cannot listen on {path}: {getattr(error, 'strerror', None) or error}") from error


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):  # refused: only the file is left of who served it
            return False
        return True


def unbind_unix(path: str) -> None:
    """Removes the file of a socket."""
    with suppress(FileNotFoundError):
        os.unlink(path)
