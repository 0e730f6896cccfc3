"""The names at the root of a mount by which training frameworks talk to a replicator (docs/frameworks.md).

Only what a name means is here: the mount's daemon, the snapshots and the adapter of the protocol
(``replicate/protocol``) have to agree on that. Nothing here looks at files.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

ORDER: Final = b"replicator.yaml"
PRERESTORE: Final = b"replicator.prerestore"
ERRORS: Final = b"replicator.errors"
FAILED: Final = b"replicator.failed"
INIT_INFO: Final = b"jax-init-info.txt"  # of the pod as it is mounted: it stays whatever the job goes back to

_OURS: Final = b"replicator."
_UNFINISHED: Final = b".tmp"
_NOTES: Final = frozenset({ORDER, ORDER + _UNFINISHED, PRERESTORE, ERRORS, FAILED})
# What a client takes for a step, or for an answer to what it asks: digits by Orbax, step=N by PyTorch.
_STALE: Final = re.compile(rb"[0-9]+|step=[0-9]+|.+\.restore|.+-s[0-9]+-n[0-9]+-w[0-9]+\.save")
_OF_A_STEP: Final = re.compile(rb"(?:step=)?[0-9]|.+-s[0-9]+-n[0-9]+-w[0-9]+\.")
_OF_STEP: Final = re.compile(rb"(?:step=)?([0-9]{1,18})|.+-s([0-9]{1,18})-n[0-9]+-w[0-9]+\.(?:restore|save)")
_OF_WORKER: Final = re.compile(rb".+-s([0-9]{1,18})-n([0-9]+)-w([0-9]+)\.(?:restore|save)")


def is_message(name: bytes, status: os.stat_result) -> bool:
    """Whether a name of the root says something to this life of the job, which no later one may find.

    An empty marker is one: it says that there is nothing.
    """
    is_empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return name in _NOTES or (is_empty and name.endswith(b".restore"))


def is_stale(name: bytes) -> bool:
    """Whether a name has to be out of sight before a job that starts is answered."""
    return (name in _NOTES and not name.endswith(_UNFINISHED)) or _STALE.fullmatch(name) is not None


def may_be_moved(name: bytes) -> bool:
    """Whether a name may have to go out of sight, or what has it once it gets its final name."""
    return _OF_A_STEP.match(name) is not None or is_stale(name)


def speaks(name: bytes) -> bool:
    """Whether somebody who asks for this name knows of the protocol."""
    return name.startswith(_OURS)


def step_in(name: bytes) -> int | None:
    """The step whose content has this name; None when it is none's."""
    found = _OF_STEP.fullmatch(name)
    return int(found[1] or found[2]) if found else None


def worker_in(name: bytes) -> tuple[int, int, int] | None:
    """Step, node rank and worker in the name of one worker's file."""
    found = _OF_WORKER.fullmatch(name)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def marker(job: str, step: int, node_rank: int, worker: int) -> str:
    """What tells a worker that its data is there."""
    return f"{job}-s{step}-n{node_rank}-w{worker}.restore"
