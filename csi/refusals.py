"""What the plugin says no with: a status by the CSI specification, and a sentence that an operator can act on.

The sentence becomes an event of the pod. What the node's own processes say is passed on as it is: it names the thing,
the cause and the remedy already.
"""

from __future__ import annotations

import errno

import grpc

from fuse_tier.wire.statuses import StatedError


def malformed(message: str) -> StatedError:
    """A request that no repetition makes right."""
    return StatedError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatedError:
    """The volume is not there."""
    return StatedError(grpc.StatusCode.NOT_FOUND, message)


def busy(volume_id: str, doing: str) -> StatedError:
    """Another call for the same volume is under way; who asks again later finds what came of it."""
    return StatedError(
        grpc.StatusCode.ABORTED,
        f"volume {volume_id} is being {doing} by an earlier call: nothing was begun; ask again when that has ended",
    )


def not_now(message: str) -> StatedError:
    """Something has to be mended, or must come about, before this can succeed."""
    return StatedError(grpc.StatusCode.FAILED_PRECONDITION, message)


def unavailable(message: str) -> StatedError:
    """A part of the driver is not there at the moment."""
    return StatedError(grpc.StatusCode.UNAVAILABLE, message)


def ran_out(message: str) -> StatedError:
    """It takes longer than kubelet waits."""
    return StatedError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def contradicted(message: str) -> StatedError:
    """The volume is there already, and otherwise than it is asked for."""
    return StatedError(grpc.StatusCode.ALREADY_EXISTS, message)


def failed(message: str) -> StatedError:
    """The machine refuses what should work."""
    return StatedError(grpc.StatusCode.INTERNAL, message)


def unfit(what: str, error: OSError) -> StatedError:
    """The volume is there, and what the pod is to find in it cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StatedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{what}: {error.strerror}; `fuse-tier status` on the node says who has the room; it is tried again",
        )
    return failed(f"{what}: {error.strerror}; see the log of the fuse container; it is tried again")
