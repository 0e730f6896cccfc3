"""What kubelet says about a pod and its volume: the pod's names, and the attributes in the pod's manifest.

Attributes are few and spelled exactly: one that is unknown is refused, because a mistyped ``replica`` would give the
pod other files than it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from csi.refusals import malformed
from fuse_tier.errors import ConfigError
from fuse_tier.identity import is_name
from fuse_tier.stepnames import check_pattern

_KUBELET: Final = "csi.storage.k8s.io/"
RESTORES: Final = ("consistent", "latest", "none")
_STEP_PATTERN: Final = "stepPattern"
_ATTRIBUTES: Final = ("workload", "replica", "run", "restore", "ranks", _STEP_PATTERN)


@dataclass(frozen=True, slots=True)
class Pod:
    """Whose volume it is."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name} ({self.uid})"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the pod's manifest says about the volume; empty for nothing said."""

    workload: str = ""
    replica: str = ""
    run: str = ""
    restore: str = ""
    ranks: str = ""
    """How many replicas the workload has, which all go on from one step."""
    step_pattern: str = ""
    """How the job names its steps; empty: as frameworks do."""


def read_context(context: Mapping[str, str]) -> tuple[Pod, Wishes]:
    """Reads a publish call's volume context. Raises StatedError (INVALID_ARGUMENT), which names the key."""
    if context.get(f"{_KUBELET}ephemeral") != "true":
        raise malformed(
            "only inline ephemeral volumes are served: write the volume into the pod under `csi:`, without a "
            "PersistentVolume (and set podInfoOnMount and volumeLifecycleModes: [Ephemeral] in the CSIDriver)"
        )
    pod = Pod(*(_of_kubelet(context, key) for key in ("pod.namespace", "pod.name", "pod.uid")))
    said: dict[str, str] = {}
    for key, value in context.items():
        if key.startswith(_KUBELET):
            continue
        if key not in _ATTRIBUTES:
            raise malformed(f"volumeAttributes has {key!r}, which is none: there are {', '.join(_ATTRIBUTES)}")
        if key == _STEP_PATTERN:
            said["step_pattern"] = _pattern(value)
            continue
        if key != "restore" and value and not is_name(value):
            raise malformed(
                f"volumeAttributes.{key} {value!r} must be of letters, digits, '.', '_' and '-', and begin and end "
                "with a letter or digit"
            )
        said[key] = value
    wishes = Wishes(**said)
    if wishes.restore not in ("", *RESTORES):
        raise malformed(f"volumeAttributes.restore must be one of {', '.join(RESTORES)}, not {wishes.restore!r}")
    if wishes.ranks and not (wishes.ranks.isascii() and wishes.ranks.isdecimal() and 0 < int(wishes.ranks) < 1 << 31):
        raise malformed(f"volumeAttributes.ranks must be the number of the workload's replicas, not {wishes.ranks!r}")
    if wishes.replica and not wishes.workload:
        raise malformed("volumeAttributes.replica says nothing without volumeAttributes.workload: give both")
    return pod, wishes


def _pattern(value: str) -> str:
    try:
        if value:
            check_pattern(value)
    except ConfigError as error:
        raise malformed(f"volumeAttributes.{_STEP_PATTERN}: {error}") from None
    return value


def _of_kubelet(context: Mapping[str, str], key: str) -> str:
    value = context.get(_KUBELET + key, "")
    if not is_name(value):
        raise malformed(
            f"the volume context lacks {_KUBELET}{key}, or it is no name ({value!r}): set podInfoOnMount: true in "
            "the CSIDriver"
        )
    return value
