"""What a mount takes: room of the RAM tier for small files, and memory for its daemon."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Final

from fuse_tier.bench.daemons import daemon_of, resident_megabytes, tree_of
from fuse_tier.bench.frame import Figure, Row
from fuse_tier.bench.nodes import in_thread, mounted, settled
from fuse_tier.bench.places import write_files
from fuse_tier.ram.room import room_of

_SMALL_FILES: Final = 10_000
_SMALL_BYTES: Final = 4 << 10
_DIRECTORIES: Final = 100
_FILES_EACH: Final = 1_000
_IDLE_LIMIT_MB: Final = 60.0
_MANY_LIMIT_MB: Final = 150.0
_SETTINGS: Final[dict[str, Any]] = {"ram_size": "2GiB", "coordinator": False}


async def _small_space(directory: Path) -> Figure:
    """Files written through the mount and sealed, with all that we keep about them."""
    async with mounted(directory / "c", ["a"], **_SETTINGS) as (cluster, mount):
        before = room_of(str(cluster["a"].ram_path)).used
        await in_thread(write_files, mount / "small", _SMALL_FILES, _SMALL_BYTES)
        await settled(cluster["a"], "ram")
        used = room_of(str(cluster["a"].ram_path)).used - before
        return Figure(used / 1e6, _SMALL_FILES * _SMALL_BYTES / 1e6)


async def _memory(directory: Path, *, directories: int, limit: float) -> Figure:
    """With so many directories of 1,000 files, each of which the kernel knows."""
    async with mounted(directory / "c", ["a"], **_SETTINGS) as (cluster, mount):
        node = cluster["a"]
        await in_thread(make_many, tree_of(node), directories)
        await in_thread(_stat_everything, mount)
        return Figure(resident_megabytes(daemon_of(node)), limit)


def make_many(place: Path, directories: int = _DIRECTORIES) -> None:
    """Directories of 1,000 small files each."""
    for number in range(directories):
        write_files(place / f"directory{number:03}", _FILES_EACH, 64)


def _stat_everything(place: Path) -> None:
    for above, _, names in os.walk(place):
        for name in names:
            os.stat(f"{above}/{name}")


ROWS: Final = (
    Row("fs.small.space", "MB", "what was written", _small_space),
    Row("fs.memory.idle", "MB", "limit", partial(_memory, directories=0, limit=_IDLE_LIMIT_MB)),
    Row("fs.memory.100k", "MB", "limit", partial(_memory, directories=_DIRECTORIES, limit=_MANY_LIMIT_MB)),
)
