"""How much more memory may count against this process: its memory cgroups (cgroups(7)), version 1 or 2.

Who fills its own limit with pages of a tmpfs, which cannot be reclaimed, dies of its next small allocation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_PLACE: Final = Path("/sys/fs/cgroup")
_MOST: Final = 1 << 60  # what version 1 says without a limit is above


def memory_left() -> int | None:
    """Bytes until the nearest limit; None where there is none, or none is to be seen. Blocks for microseconds."""
    left = [limit - used for limit, used in _limits() if limit < _MOST]
    return max(0, min(left)) if left else None


def _limits() -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _upwards(_PLACE, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _upwards(_PLACE / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _upwards(place: Path, path: str, limit: str, usage: str) -> Iterator[tuple[int, int]]:
    # In a container whose own group is mounted here the path leads nowhere, and the place itself is the group.
    inside = PurePosixPath(path).relative_to("/")
    for group in (inside, *inside.parents):
        try:
            yield int((place / group / limit).read_text()), int((place / group / usage).read_text())
        except (OSError, ValueError):  # no such group here; "max"
            continue
