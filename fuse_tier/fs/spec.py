"""What a mount daemon is told at its start: one JSON object, checked here and trusted afterwards."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any, Final

from fuse_tier.errors import ConfigError
from fuse_tier.identity import Identity

TIERS: Final = ("ram", "peer", "bucket")
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
    fuse_fd: int | None = None
    """A descriptor of /dev/fuse that is mounted at ``mountpoint`` already; None to mount here."""

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
        read_only, fuse_fd = given.get("read_only", False), given.get("fuse_fd")
        if not isinstance(read_only, bool):
            raise ConfigError(f"parameter 'read_only' of a mount must be true or false, not {read_only!r}")
        if fuse_fd is not None and (not isinstance(fuse_fd, int) or isinstance(fuse_fd, bool) or fuse_fd < 0):
            raise ConfigError(
                f"parameter 'fuse_fd' of a mount must be a descriptor's number or null, not {fuse_fd!r}"
            )
        return cls(
            ram_root=_path(given, "ram_root"),
            identity=Identity.parse(_text(given, "identity")),
            mountpoint=_path(given, "mountpoint"),
            worker_socket=_path(given, "worker_socket"),
            read_only=read_only,
            fsync=fsync,
            fuse_fd=fuse_fd,
        )


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"parameter {name!r} of a mount is missing or no string")
    return value


def _path(given: dict[str, Any], name: str) -> str:
    value = _text(given, name)
    if not os.path.isabs(value) or "\0" in value:
        raise ConfigError(f"parameter {name!r} of a mount must be an absolute path, not {value!r}")
    return value
