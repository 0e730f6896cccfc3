"""In which container a process runs: where the numbers of processes mean the same, and who dies together."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

POD: Final = "FUSE_TIER_POD"
"""The environment's word for a container of a driver's pod: its uid."""
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # linux/proc_ns.h


@cache
def container() -> str:
    """A name for this one that no other on this machine has, or had, since it was started.

    The kernel gives the number of a namespace out again; not with the same start of its first process. Containers of
    pods may share the machine's process numbers; each has mounts of its own.
    """
    number = os.stat("/proc/self/ns/pid").st_ino
    try:
        # Field 22 (proc(5)), counted from behind the command's name, which may hold anything.
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # processes of others may be hidden; then there is no container about us
        started = ""
    of_pod = f":{os.stat('/proc/self/ns/mnt').st_ino}" if os.environ.get(POD) else ""
    return f"{number}:{started}{of_pod}"


def may_be_outlived() -> bool:
    """Whether this is a pod's container whose processes are numbered among the machine's (``hostPID``).

    In any other its first process is number 1, and all others end with that.
    """
    if not os.environ.get(POD):
        return False
    if os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE:
        return True
    try:
        return os.stat("/proc/1/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
    except OSError:
        return False
