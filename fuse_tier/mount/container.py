"""In which container a process runs: where the numbers of processes mean the same, and who dies together."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def container() -> str:
    """A name for this one that no other on this machine has, or had, since it was started.

    The kernel gives the number of a namespace out again; not with the same start of its first process.
    """
    number = os.stat("/proc/self/ns/pid").st_ino
    try:
        # Field 22 (proc(5)), counted from behind the command's name, which may hold anything.
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # processes of others may be hidden; then there is no container about us
        started = ""
    return f"{number}:{started}"
