"""Whether a mount's containers are told apart, and which have made names at its root since its job last began.

The worker leaves the note before it mounts a volume that goes with the other ranks of its job; the mount's daemon
adds to it, and reads it again when it is started anew. No note: nobody asks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from contextlib import suppress

import structlog

from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.notes import replace

log = structlog.get_logger(__name__)


def begin(volume: VolumeLayout) -> None:
    """From here on containers are told apart. Raises OSError."""
    write(volume, ())


def write(volume: VolumeLayout, savers: Collection[str]) -> None:
    """These have made names since. Raises OSError."""
    replace(volume.tier, volume.lives, json.dumps(sorted(savers)))


def read(volume: VolumeLayout) -> frozenset[str] | None:
    """None where they are not told apart."""
    try:
        with open(volume.lives, encoding="ascii") as file:
            return frozenset(map(str, json.load(file)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.error("volume.lives_unreadable", path=volume.lives, reason=str(error))
        return frozenset()


def forget(volume: VolumeLayout) -> None:
    """Before a mount. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(volume.lives)
