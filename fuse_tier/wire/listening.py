"""Where control calls are listened for, and why that may fail.

gRPC tells only that it could not bind; this module finds out why, and makes unix sockets so that at no moment
anybody but their owner can connect.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from contextlib import suppress

import grpc

from fuse_tier.errors import ConfigError
from fuse_tier.wire.tls import TlsFiles, grpc_server_credentials

UNIX = "unix:"
_LONGEST_SOCKET_PATH = 107  # linux/un.h, UNIX_PATH_MAX without its NUL


def bind(server: grpc.Server, address: str, tls: TlsFiles | None) -> int:
    """Makes a server listen; gives the port, 0 for a unix socket. Raises ConfigError naming the address."""
    if address.startswith(UNIX):
        _bind_unix(server, address.removeprefix(UNIX))
        return 0
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, grpc_server_credentials(tls))
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {_why_not(address)}") from error


def _why_not(address: str) -> str:
    """The cause that gRPC keeps to itself."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "the port is already in use: end the process that has it, or choose another port"
        return error.strerror or str(error)
    return "the address was in use a moment ago: try again"


def _bind_unix(server: grpc.Server, path: str) -> None:
    """Binds in a directory of our own first: at no moment may another user connect, and a stale file gives way."""
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


def unbind(address: str) -> None:
    """Removes the file of a unix socket; TCP needs nothing."""
    if address.startswith(UNIX):
        with suppress(FileNotFoundError):
            os.unlink(address.removeprefix(UNIX))
