"""What a mount daemon is told at its start: one JSON object, checked here and trusted afterwards."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any, Final

from fuse_tier.errors import ConfigError
from fuse_tier.identity import Identity

TIERS: Final = ("ram", "peer", "bucket")
PASSTHROUGH: Final = ("auto", "on", "off")
_VOLUMES: Final = ".volumes"


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One mount. Paths are absolute."""

    ram_root: str
    identity: Identity
    mountpoint: str
    worker_socket: str
    read_only: bool = False
    fsync: str = "ram"
    """What an fsync waits for: one of ``TIERS``."""
    expected_sizes: tuple[tuple[str, int], ...] = ()
    """Patterns of file names, and how many bytes such files will have."""
    share: int = 0
    """Bytes of the RAM tier that the volume may have; 0 for as many as there are."""
    passthrough: str = "auto"
    """Whether the kernel reads and writes file content by itself: ``on`` and ``off``, or where it can."""
    keeper_socket: str | None = None
    """Where the keeper answers; None for nowhere."""
    take_over: str | None = None
    """Where the keeper answers that has the mount now, and is to hand it over; None for a mount to be made."""

    @property
    def settings(self) -> dict[str, object]:
        """What may be another after a handover."""
        return {
            "worker_socket": self.worker_socket,
            "fsync": self.fsync,
            "expected_sizes": [list(pair) for pair in self.expected_sizes],
            "share": self.share,
        }

    @property
    def node_socket(self) -> str:
        """Where the node answers people and their tools."""
        return self.worker_socket.removesuffix(_VOLUMES)

    @classmethod
    def parse(cls, text: str) -> MountSpec:
        """Reads the JSON object. Raises ConfigError, which names the field."""
        try:
            given = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the parameters of a mount must be one JSON object: {error}") from error
        if not isinstance(given, dict):
            raise ConfigError("the parameters of a mount must be one JSON object")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ConfigError(f"a mount has no parameter {unknown[0]!r}: there are {', '.join(sorted(known))}")
        fsync = given.get("fsync", "ram")
        if fsync not in TIERS:
            raise ConfigError(f"parameter 'fsync' of a mount must be one of {', '.join(TIERS)}, not {fsync!r}")
        read_only = given.get("read_only", False)
        if not isinstance(read_only, bool):
            raise ConfigError(f"parameter 'read_only' of a mount must be true or false, not {read_only!r}")
        passthrough = given.get("passthrough", "auto")
        if passthrough not in PASSTHROUGH:
            raise ConfigError(
                f"parameter 'passthrough' of a mount must be one of {', '.join(PASSTHROUGH)}, not {passthrough!r}"
            )
        return cls(
            ram_root=_path(given, "ram_root"),
            identity=Identity.parse(_text(given, "identity")),
            mountpoint=_path(given, "mountpoint"),
            worker_socket=_path(given, "worker_socket"),
            read_only=read_only,
            fsync=fsync,
            expected_sizes=_sizes(given.get("expected_sizes", ())),
            share=int(given.get("share", 0)),
            passthrough=passthrough,
            keeper_socket=None if given.get("keeper_socket") is None else _path(given, "keeper_socket"),
            take_over=None if given.get("take_over") is None else _path(given, "take_over"),
        )


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"parameter {name!r} of a mount is missing or no string")
    return value


def _sizes(given: Any) -> tuple[tuple[str, int], ...]:
    try:
        return tuple((str(pattern), int(size)) for pattern, size in given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"parameter 'expected_sizes' of a mount must be pairs of a pattern and a size, not {given!r}"
        ) from error


def _path(given: dict[str, Any], name: str) -> str:
    value = _text(given, name)
    if not os.path.isabs(value) or "\0" in value:
        raise ConfigError(f"parameter {name!r} of a mount must be an absolute path, not {value!r}")
    return value
