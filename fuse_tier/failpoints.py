"""Places in the code where a test makes the process end, stop or fail: for crashes at the moment that matters.

Off unless the environment variable ``FUSE_TIER_FAILPOINTS`` names a file: then each place that is reached looks
there for itself. A line is ``NAME ACTION``; ``kill`` ends the process (SIGKILL), ``stop`` stops it (SIGSTOP),
``raise`` fails. Whoever takes a line removes the file first, so that each fires once, also where what was killed
is started again. The invariant: a process that was not given the variable does nothing here but one comparison.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from fuse_tier.errors import ConfigError, TierUnavailable

VARIABLE = "FUSE_TIER_FAILPOINTS"
ACTIONS = frozenset({"kill", "stop", "raise"})
CALLS = ("report", "claim", "release", "restart", "join", "locate")  # of a coordinator
NAMES = frozenset(
    {
        *(f"coordinator.{call}.{moment}" for call in CALLS for moment in ("heard", "answering")),
        "restart.joining",
        "restart.joined",
        "snapshot.walked",
        "snapshot.committed",
        "snapshot.recorded",
        "copy.begun",
        "copy.moving",
        "copy.stored",
        "copy.committed",
        "content.allocated",
        "content.hashed",
        "content.named",
        "bucket.answered",
        "listing.written",
        "listing.published",
        "replicator.noted",
        "replicator.accepted",
        "replicator.staged",
        "replicator.answered",
        "in_place.arranged",
        "in_place.joined",
        "restore.arrived",
        "restore.fetched",
        "restore.cleared",
        "restore.built",
        "restore.placed",
        "retention.dropped",
        "retention.collecting",
    }
)

_file = os.environ.get(VARIABLE, "")


class FailpointReached(TierUnavailable):
    """What a failpoint with the action ``raise`` raises."""


def reached(name: str) -> None:
    """A marked place: does what the file says about it, once. Raises FailpointReached if that is ``raise``."""
    if not _file:
        return
    with suppress(FileNotFoundError):
        with open(_file, encoding="ascii") as file:
            armed, _, action = file.read().strip().partition(" ")
        if armed == name:
            os.unlink(_file)  # of two threads or processes at the same place, one gets past this line
            _act(name, action)


def arm(path: str, name: str, action: str) -> None:
    """Writes the file: at once, so that no process reads half a line. Raises ConfigError for a name or an action that
    there is not.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no failpoint {name!r}; there are: {', '.join(sorted(NAMES))}")
    if action not in ACTIONS:
        raise ConfigError(f"a failpoint cannot {action!r}: give one of {', '.join(sorted(ACTIONS))}")
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{name} {action}\n")
    os.rename(temporary, path)


def _act(name: str, action: str) -> None:
    if action == "raise":
        raise FailpointReached(f"failpoint {name} was reached: {VARIABLE} asked for it")
    os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)
