"""What all mounts of a node are kept with: what the supervisor tells each keeper at its start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fuse_tier.identity import Identity
from fuse_tier.node.keepers import place_of

_VOLUMES: Final = ".volumes"


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """What every mount of a node is kept with."""

    command: Sequence[str]
    """Of a keeper that is a program of its own."""
    ram_root: str
    worker_socket: str
    fsync: str
    passthrough: str = "auto"
    expected_sizes: Sequence[tuple[str, int]] = ()
    share: int = 0
    """Bytes of the RAM tier that a volume may have; 0 for as many as there are."""
    many: Sequence[str] | None = None
    """Of the process that keepers are forked from; None to start them by ``command``."""
    vaulted: bool = False
    """A vault has copies of what keepers have, and keepers that are not of this container are replaced."""

    @property
    def place(self) -> str:
        """The directory of the keepers' sockets."""
        return place_of(self.worker_socket.removesuffix(_VOLUMES))

    def tell(
        self, identity: Identity, mountpoint: str, keeper_socket: str, *, read_only: bool, take_over: str | None
    ) -> str:
        """What the keeper of a mount is started with (fs/spec.py)."""
        told = {
            "ram_root": self.ram_root,
            "identity": str(identity),
            "mountpoint": mountpoint,
            "read_only": read_only,
            "passthrough": self.passthrough,
            "keeper_socket": keeper_socket,
            "take_over": take_over,
        }
        return json.dumps(told | self.changeable())

    def changeable(self) -> dict[str, Any]:
        """What a mount that is there already can be given anew."""
        return {
            "worker_socket": self.worker_socket,
            "fsync": self.fsync,
            "expected_sizes": [list(pair) for pair in self.expected_sizes],
            "share": self.share,
        }
