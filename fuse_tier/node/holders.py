"""Who keeps a mount busy, for the message of an unmount that was refused. Best effort: it changes all the time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from fuse_tier.mount.table import is_inside


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with an open file or a working directory in a mount."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def find_holders(mountpoint: str) -> tuple[Holder, ...]:
    """The processes that use the mount at the canonical ``mountpoint``, as far as we may see; blocks.

    Only names are read, nothing asks the mounted filesystem. Processes that see it under another path, as
    containers do, are not found.
    """
    found = []
    for name in os.listdir("/proc"):
        # Processes come and go, and others' are not for an ordinary user to see.
        with suppress(OSError):
            if name.isdigit() and any(is_inside(path, mountpoint) for path in _uses(f"/proc/{name}")):
                with open(f"/proc/{name}/comm") as comm:
                    found.append(Holder(int(name), comm.read().strip()))
    return tuple(found)


def _uses(process: str) -> Iterator[str]:
    for link in ("cwd", "root"):
        yield os.readlink(f"{process}/{link}")
    for descriptor in os.listdir(f"{process}/fd"):
        with suppress(FileNotFoundError):
            yield os.readlink(f"{process}/fd/{descriptor}")
    with open(f"{process}/maps", "rb") as maps:
        for line in maps:
            # address perms offset dev inode path (proc(5))
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) == 6:
                yield os.fsdecode(fields[5])
