"""In which container of a pod a process is, by what the kernel says of its control groups.

A container has an id that no other ever had, in the name of its group; a pod's groups have the pod's uid in theirs,
and so has the place where kubelet has the pod's volume mounted. Of processes that this one cannot see (without
``hostPID``) nothing is known. What is asked here blocks, for microseconds for one process.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from typing import Final

_PLACE: Final = re.compile(r"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/volumes/")  # kubelet's
_KEPT_SECONDS: Final = 1.0  # a process number comes again when all others have been used
_MOST: Final = 4096  # processes that are kept in mind


def pod_of(mountpoint: str) -> str | None:
    """The uid of the pod whose volume is mounted there; None when it is none of a pod's."""
    found = _PLACE.search(mountpoint)
    return found[1] if found else None


class Containers:
    """Those of one pod."""

    def __init__(self, pod: str) -> None:
        # Where systemd makes the groups a uid has underscores: in a slice's name dashes mean something.
        uid = re.escape(pod).replace("\\-", "[-_]")
        self._group = re.compile(rf"pod{uid}[^\n]*?([0-9a-f]{{64}})")
        self._kept: dict[int, tuple[float, str | None]] = {}

    def container_of(self, pid: int) -> str | None:
        """None for a process that is in none of the pod's containers, or cannot be seen."""
        now = time.monotonic()
        kept = self._kept.get(pid)
        if kept is not None and now < kept[0]:
            return kept[1]
        if len(self._kept) >= _MOST:
            self._kept.clear()
        found = self._look(pid)
        self._kept[pid] = (now + _KEPT_SECONDS, found)
        return found

    def _look(self, pid: int) -> str | None:
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
                return self.container_in(file.read())
        except OSError:
            return None

    def container_in(self, groups: str) -> str | None:
        """Of the groups of a process (cgroups(7), ``/proc/PID/cgroup``) the container; None for none of the pod's."""
        found = self._group.search(groups)
        return found[1] if found else None

    def any_lives(self, containers: Collection[str]) -> bool:
        """Whether a process of these is left. Blocks for milliseconds."""
        pids = map(int, filter(str.isdigit, os.listdir("/proc")))
        return any(self._look(pid) in containers and not _is_dead(pid) for pid in pids)


def _is_dead(pid: int) -> bool:
    """Whether there is nothing left of a process but its number: neither its first thread nor another."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            is_over = file.read().rpartition(b") ")[2][:1] in (b"Z", b"X")
        return is_over and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return True
