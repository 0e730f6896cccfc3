"""Asking a node over its unix socket: one call, one answer, or a stream of steps.

A command has one thing to do at a time, so this is the plain blocking client of gRPC, without an event loop. A node's
error is raised here as the class that it was raised as there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, MountError, TierUnavailable
from fuse_tier.manifest import MAX_ENCODED_BYTES
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire import control_pb2_grpc as rpc
from fuse_tier.wire.statuses import rebuild

SOCKET_VARIABLE = "FUSE_TIER_NODE"
DEFAULT_SOCKET = "/run/fuse-tier/node.sock"
NODE_ATTRIBUTE = "user.fuse_tier.node"
IDENTITY_ATTRIBUTE = "user.fuse_tier.identity"
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ENCODED_BYTES + (1 << 16)),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


class NodeClient:
    """A connection to one node. Made by ``connected``."""

    def __init__(self, channel: grpc.Channel, socket: str) -> None:
        self._stub: Any = rpc.NodeStub(channel)
        self._socket = socket

    def call(self, name: str, request: Any, deadline_seconds: float = Deadline.STATUS) -> Any:
        """One request, one answer. Raises what the node raised."""
        try:
            return getattr(self._stub, name)(request, timeout=deadline_seconds)
        except grpc.RpcError as error:
            raise rebuild(error, name, self._socket, deadline_seconds) from None

    def steps(self, name: str, request: Any, deadline_seconds: float) -> Iterator[pb.Step]:
        """One request, its steps as they come. Raises what the node raised. Leaving early cancels the work."""
        answers = getattr(self._stub, name)(request, timeout=deadline_seconds)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise rebuild(error, name, self._socket, deadline_seconds) from None
        finally:
            answers.cancel()


@contextmanager
def connected(socket: str | None, directory: str | None = None) -> Iterator[NodeClient]:
    """A node's client: of ``socket``, else of the node that mounted ``directory``, else of this machine's node.

    Raises TierUnavailable when none is there.
    """
    path = socket or _of_mount(directory) or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as error:
        raise TierUnavailable(
            f"no node answers on {path}: {error.strerror}: start one with `fuse-tier node`, or name its socket "
            f"with --node or ${SOCKET_VARIABLE}"
        ) from None
    if not is_socket:
        raise TierUnavailable(f"{path} is no socket: name a node's socket with --node or ${SOCKET_VARIABLE}")
    with grpc.insecure_channel(f"unix:{os.path.abspath(path)}", options=_OPTIONS) as channel:
        yield NodeClient(channel, path)


def facts_of(step: pb.Step | None) -> dict[str, Any]:
    """What the last step of a stream says. Raises FuseTierError when there was none."""
    if step is None or not step.done:
        raise FuseTierError("the node ended before it was done: `fuse-tier status` and its log say more")
    return dict(json.loads(step.facts))


def identity_of(directory: str) -> str:
    """The volume that is mounted there. Raises MountError."""
    try:
        return os.getxattr(directory, IDENTITY_ATTRIBUTE).decode()
    except OSError as error:
        reason = error.strerror if os.path.lexists(directory) else "there is no such directory"
        raise MountError(
            f"{directory} is no mounted volume ({reason}): name the directory that `fuse-tier mount` was given"
        ) from None


def _of_mount(directory: str | None) -> str | None:
    if directory is None:
        return None
    try:
        return os.getxattr(directory, NODE_ATTRIBUTE).decode()
    except OSError:  # no mount, or one whose daemon is gone: then the usual node knows more
        return None
