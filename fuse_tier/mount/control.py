"""The kernel's word on FUSE connections: what waits on each, and its end. Looking asks no daemon of a mount."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fuse_tier.mount.table import read_mounts

CONNECTIONS: Final = "/sys/fs/fuse/connections"
_CONTROL: Final = "fusectl"


@contextmanager
def connections() -> Iterator[str]:
    """A directory with one for each connection, by the minor number of its mount's device.

    Where nobody has mounted it, as in containers, it is mounted for the time being. Blocks for milliseconds. Raises
    OSError.
    """
    if any(mount.path == CONNECTIONS and mount.filesystem == _CONTROL for mount in read_mounts()):
        yield CONNECTIONS
        return
    with tempfile.TemporaryDirectory(prefix="fuse-tier-control-") as place:
        done = subprocess.run(["mount", "-t", _CONTROL, _CONTROL, place], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"{CONNECTIONS} is not mounted, and cannot be: {done.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)


def waiting(directory: str, number: int) -> int:
    """How many requests wait on a connection; 0 also when it has ended."""
    try:
        with open(os.path.join(directory, str(number), "waiting")) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def abort(directory: str, number: int) -> None:
    """Ends a connection: whoever waits, or comes later, gets ENOTCONN. Raises OSError."""
    with open(os.path.join(directory, str(number), "abort"), "w") as file:
        file.write("1")
