"""Every error that fuse-tier raises on purpose.

One tree, so that a caller can catch as widely or as narrowly as it means to, and the command line can
turn any of them into one line and an exit status. A message names the thing, the cause and the remedy.
Errors that travel between nodes are mapped to gRPC codes in ``wire/statuses.py``, nowhere else.
"""

from __future__ import annotations

import errno


class FuseTierError(Exception):
    """Anything that fuse-tier reports. ``exit_status`` is what a command that meets it exits with."""

    exit_status = 1


class ConfigError(FuseTierError):
    """A configuration or a command line says something that we cannot do. Nothing was changed."""

    exit_status = 2


class MountError(FuseTierError):
    """A mountpoint cannot be used, or a mount failed."""


class IdentityBusy(FuseTierError):
    """The identity is mounted somewhere else; the message names where."""


class RunMismatch(FuseTierError):
    """The stored snapshots belong to a job of another world size or topology: never restored in silence."""


class DeadlineExceeded(FuseTierError):
    """A wait ran out; the message names which one."""


class InvalidRequest(FuseTierError):
    """A peer or a client asked for something malformed. Nothing was changed."""


class NotAuthorized(FuseTierError):
    """A caller has no valid certificate or token."""


class TierError(FuseTierError):
    """A tier could not do what was asked of it."""


class TierUnavailable(TierError):
    """The tier does not answer, or not now: trying again later may help."""


class NotThatNode(TierUnavailable):
    """Where a node was called another one answers, by its certificate: nothing was told to it."""


class TierRefused(TierError):
    """The tier answers and says no: trying again will not help before somebody mends the cause."""


class UnknownCall(TierRefused):
    """The other side is of a version that has no such call."""


class TierFull(TierError):
    """The tier has no room."""

    errno = errno.ENOSPC


class NotFound(TierError):
    """The tier has no such snapshot or content."""


class Damaged(TierError):
    """What the tier holds is not what its name says: another source is needed."""

    errno = errno.EIO


class MalformedManifest(Damaged):
    """A manifest that breaks a rule of its format; it is refused whole."""


class IncompleteSnapshot(TierError):
    """A manifest was to be committed before all its content was there."""


class SnapshotConflict(TierError):
    """The tier already has another snapshot of that number. ``highest`` is the highest number it has."""

    def __init__(self, message: str, highest: int) -> None:
        super().__init__(message)
        self.highest = highest
