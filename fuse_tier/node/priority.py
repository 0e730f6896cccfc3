"""Whom the kernel spares when memory runs out: first what mounts live by, then what copies, before any job.

A keeper that is killed costs a handover, a daemon some milliseconds; all vaults together cost the mounts. The worker
costs nothing but time, so it goes before them. What a process starts inherits this.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

KEEPING: Final = -999
"""``oom_score_adj`` (proc(5)) of the supervisor with its keepers and daemons, and of vaults. -1000 would be never."""
COPYING: Final = -900
"""Of the worker."""


def protect(adjustment: int, process: int | None = None) -> None:
    """Sets it for a process, this one without a number, as far as we may.

    Without CAP_SYS_RESOURCE nothing gets lower than it is: in Kubernetes, -997 for a node-critical pod.
    """
    # OSError: also a process that has ended meanwhile.
    with suppress(OSError), open(f"/proc/{process or 'self'}/oom_score_adj", "w") as file:
        file.write(str(adjustment))
