"""Whether a mount's containers are told apart, and which have written in it since its job last began.

The worker leaves the note before it mounts a volume that goes with the other ranks of its job; the mount's daemon
adds to it, and reads it again when it is started anew. No note: nobody asks. Of each container it says whether that
has made names at the root, or has written below it alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress

import structlog

from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.notes import replace

log = structlog.get_logger(__name__)


def begin(volume: VolumeLayout) -> None:
    """From here on containers are told apart. Raises OSError."""
    write(volume, {})


def write(volume: VolumeLayout, writers: Mapping[str, bool]) -> None:
    """These have written since; ``True`` of those that have made names at the root. Raises OSError."""
    replace(volume.tier, volume.lives, json.dumps(writers, sort_keys=True))


def read(volume: VolumeLayout) -> dict[str, bool] | None:
    """As ``write`` has it; None where they are not told apart."""
    try:
        with open(volume.lives, encoding="ascii") as file:
            noted = json.load(file)
        if isinstance(noted, list):  # by a version that told of the root alone
            noted = dict.fromkeys(noted, True)
        return {str(container): bool(at_root) for container, at_root in noted.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.error("volume.lives_unreadable", path=volume.lives, reason=str(error))
        return {}


def forget(volume: VolumeLayout) -> None:
    """Before a mount. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(volume.lives)
