"""A worker gives way to jobs: what it does can wait, a job's step cannot.

A lower priority costs replication nothing while a processor is idle. Where all are busy it has about a third of the
weight of a job's process, so that it goes on all the same. Linux weighs by session first (autogroup, sched(7)),
unless cgroups divide the processors, and then the processes in each. So the worker, which has a session of its own,
lowers both; in a container its requests and limits say what its pod gets, and the mounts' daemons go before it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_NICENESS: Final = 5  # each step is a factor of 1.25 of weight (sched(7))
_AUTOGROUP: Final = Path("/proc/self/autogroup")


def give_way() -> None:
    """Lowers the priority of this process, and of its session if it leads one."""
    os.nice(max(0, _NICENESS - os.nice(0)))
    if os.getsid(0) != os.getpid():
        return  # others of it were not asked
    try:
        _AUTOGROUP.write_text(str(_NICENESS))
    except OSError as error:  # a kernel without it weighs by process
        log.info("worker.priority_not_lowered", reason=str(error))
