"""Who a volume belongs to, and how its snapshots are named.

Names come from users, peers and buckets, and become paths and object names: this module is the one
place that says which are allowed, so that nothing derived from them can leave its root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fuse_tier.epochs import epoch_of
from fuse_tier.errors import ConfigError

_NUMBER = re.compile(r"[1-9][0-9]{0,18}")
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


def is_name(text: str) -> bool:
    """Whether ``text`` may name a node, a namespace, a workload or a replica.

    Letters, digits, ``.``, ``_`` and ``-``, beginning and ending with a letter or digit, at most 253 in all:
    what Kubernetes allows for its objects, and a little more. Never a path.
    """
    return _PART.fullmatch(text) is not None and ".." not in text


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """What outlives a pod: namespace / workload / replica, such as ``default/llama/slice-0-3``."""

    namespace: str
    workload: str
    replica: str

    def __post_init__(self) -> None:
        for part in (self.namespace, self.workload, self.replica):
            if not is_name(part):
                raise ConfigError(
                    f"{part!r} is no valid part of an identity: use NAMESPACE/WORKLOAD/REPLICA, each of letters, "
                    "digits, '.', '_' and '-', beginning and ending with a letter or digit"
                )

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Reads ``NAMESPACE/WORKLOAD/REPLICA``. Raises ConfigError."""
        parts = text.split("/")
        if len(parts) != 3:
            raise ConfigError(f"identity {text!r} must have three parts: NAMESPACE/WORKLOAD/REPLICA")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.workload}/{self.replica}"


@dataclass(frozen=True, slots=True, order=True)
class SnapshotId:
    """One snapshot of one volume: ``default/llama/slice-0-3@12``.

    Numbers begin at 1 and only grow; their upper part is the epoch of who owned the volume (``epochs.py``).
    """

    identity: Identity
    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number < 1 << 63:
            raise ConfigError(f"snapshot number {self.number} is out of range: numbers begin at 1")

    @property
    def epoch(self) -> int:
        """Under which ownership of the volume it was taken."""
        return epoch_of(self.number)

    @classmethod
    def parse(cls, text: str) -> SnapshotId:
        """Reads ``NAMESPACE/WORKLOAD/REPLICA@NUMBER``. Raises ConfigError."""
        identity, at, number = text.rpartition("@")
        if not at or _NUMBER.fullmatch(number) is None:
            raise ConfigError(f"snapshot {text!r} must look like NAMESPACE/WORKLOAD/REPLICA@NUMBER")
        return cls(Identity.parse(identity), int(number))

    def __str__(self) -> str:
        return f"{self.identity}@{self.number}"
