"""Has the RAM tier's memory made ready by a short-lived process (ram/warm.py), once for each tmpfs."""

from __future__ import annotations

import sys

import structlog
import trio

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.warm import read_warmed

log = structlog.get_logger(__name__)


async def warm_once(layout: Layout) -> None:
    """Returns when it is done, or was done before. A failure costs speed only, and is logged."""
    if read_warmed(layout) is not None:
        return
    log.info("ram.warming", path=layout.root)
    command = [sys.executable, "-P", "-m", "fuse_tier.ram.warm", layout.root]
    try:
        done = await trio.run_process(command, check=False, capture_stderr=True)
    except OSError as error:
        log.warning("ram.not_warmed", status=None, reason=str(error))
        return
    warmed = read_warmed(layout)
    if done.returncode or warmed is None:
        reason = (done.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        log.warning("ram.not_warmed", status=done.returncode, reason=reason)
        return
    log.info("ram.warmed", **warmed)
