"""How our errors travel over gRPC: a status code for everybody, and the class by name for us.

The name of the nearest class of ``errors.py`` goes into the trailing metadata, so that the caller raises what
the callee raised. A status without it comes from gRPC itself (nobody answers, a deadline) and is put into
words here.
"""

from __future__ import annotations

from typing import Any

import grpc

from fuse_tier import errors
from fuse_tier.errors import DeadlineExceeded, FuseTierError, SnapshotConflict, TierUnavailable, UnknownCall

_CLASS_KEY = "fuse-tier-error"
_HIGHEST_KEY = "fuse-tier-highest"
_MAX_DETAILS = 1900  # UTF-8 bytes: each may take three on the wire, and gRPC refuses more than 8 KiB of metadata


class StatedError(FuseTierError):
    """An error of a protocol that says itself which status each of its failures has."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


_CODES: dict[type[FuseTierError], grpc.StatusCode] = {
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotAuthorized: grpc.StatusCode.PERMISSION_DENIED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.TierUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.TierFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Damaged: grpc.StatusCode.DATA_LOSS,
    errors.MalformedManifest: grpc.StatusCode.DATA_LOSS,
    errors.SnapshotConflict: grpc.StatusCode.ALREADY_EXISTS,
}

_OTHER_NAME = "Hostname Verification Check failed"
_WORDS = (  # what gRPC's core writes, in its order of preference, and what it means
    ("CERTIFICATE_VERIFY_FAILED", "TLS refused: its certificate is not of this cluster's authority, or has expired"),
    (_OTHER_NAME, "TLS refused: its certificate is none of a fuse-tier node"),
    ("handshake failed", "TLS handshake failed: it may have another authority, or no TLS at all"),
    ("handshaker shutdown", "TLS handshake failed: it may have another authority, or no TLS at all"),
    ("Connection refused", "connection refused: nothing listens there"),
    ("No such file", "there is no such socket: the process that serves it is not running"),
    ("Permission denied", "permission denied: the socket belongs to another user"),
    ("No route to host", "no route to host"),
    ("Network is unreachable", "network is unreachable"),
    ("errors resolving", "its name can not be resolved"),
    ("FD shutdown", "no answer to the connection attempt"),
    ("imed out", "no answer to the connection attempt"),
    ("connection attempt timed out", "no answer to the connection attempt"),
    ("Connection reset", "the connection was reset: the process ended, or does not take our certificate"),
    ("Socket closed", "the connection was closed: the process ended, or does not take our certificate"),
    ("Broken pipe", "the connection was closed: the process ended, or does not take our certificate"),
    ("GOAWAY", "the process is shutting down"),
)


def code_of(error: FuseTierError) -> grpc.StatusCode:
    """The status that strangers see."""
    if isinstance(error, StatedError):
        return error.status
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return grpc.StatusCode.FAILED_PRECONDITION


def metadata_of(error: FuseTierError) -> tuple[tuple[str, str], ...]:
    """What lets the caller raise the same class."""
    name = next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    if isinstance(error, SnapshotConflict):
        return ((_CLASS_KEY, name), (_HIGHEST_KEY, str(error.highest)))
    return ((_CLASS_KEY, name),)


def details_of(error: FuseTierError) -> str:
    """The message, cut to what a status can carry."""
    encoded = str(error).encode(errors="replace")
    if len(encoded) <= _MAX_DETAILS:
        return encoded.decode()
    return encoded[:_MAX_DETAILS].decode(errors="ignore") + "…"


def is_of_another_name(error: grpc.RpcError) -> bool:
    """Whether a call failed because the certificate over there lacks the name that was called."""
    status: Any = error  # see ``rebuild``
    return status.code() is grpc.StatusCode.UNAVAILABLE and _OTHER_NAME in (status.details() or "")


def rebuild(error: grpc.RpcError, call: str, address: str, deadline_seconds: float | None) -> FuseTierError:
    """What a failed call means to its caller."""
    status: Any = error  # every RpcError that a call raises is a grpc.Call as well, which the stubs cannot say
    code, details = status.code(), status.details() or ""
    metadata = dict(status.trailing_metadata() or ())
    kind = getattr(errors, str(metadata.get(_CLASS_KEY, "")), None)
    if isinstance(kind, type) and issubclass(kind, SnapshotConflict):
        highest = str(metadata.get(_HIGHEST_KEY, ""))
        return SnapshotConflict(details, int(highest) if highest.isascii() and highest.isdigit() else 0)
    if isinstance(kind, type) and issubclass(kind, FuseTierError):
        return kind(details)
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{call} at {address} was not answered within {deadline_seconds:g} s")
        case grpc.StatusCode.UNAVAILABLE:
            return TierUnavailable(f"{address} does not answer: {_explain(details)}")
        case grpc.StatusCode.CANCELLED | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return TierUnavailable(f"{address} could not serve {call} now: {details}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return UnknownCall(f"{address} does not know the call {call}: it runs another version of fuse-tier")
        case _:
            return TierUnavailable(f"{address} failed to serve {call} ({code.name}: {details}): its log says why")


def _explain(details: str) -> str:
    for pattern, words in _WORDS:
        if pattern.lower() in details.lower():
            return words
    return details
