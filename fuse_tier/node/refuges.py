"""Sees to it that there is a refuge (refuge.py) while this node has mounts, where one can outlive its container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from fuse_tier.fs.version import code_version
from fuse_tier.mount.container import may_be_outlived
from fuse_tier.node.keepers import place_of
from fuse_tier.node.refuge import version_at

log = structlog.get_logger(__name__)

COMMAND: Final = (sys.executable, "-P", "-m", "fuse_tier.node.refuge")
_LOOK_EVERY_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 30.0


async def keep_refuge(socket: str, command: Sequence[str] = COMMAND) -> None:
    """Starts one whenever it is missing, or of another version, until this is cancelled: it stays then."""
    if not may_be_outlived():
        log.info("refuge.none", reason="the pod has no hostPID: if all its containers end at once, mounts end")
        return
    while True:
        if _has_mounts(socket) and version_at(socket) != code_version():
            await _watch(_start([*command, socket]))
        await trio.sleep(_LOOK_EVERY_SECONDS)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


async def _watch(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:  # noqa: ASYNC110 - so that it leaves no zombie; it lives as long as there are mounts
        await trio.sleep(_LOOK_EVERY_SECONDS)
    if process.returncode:
        log.warning("refuge.missing", reason=f"it ended with status {process.returncode}: see its log",
                    again_in_seconds=_PAUSE_SECONDS)  # fmt: skip
        await trio.sleep(_PAUSE_SECONDS)


def _has_mounts(socket: str) -> bool:
    try:
        return bool(os.listdir(place_of(socket)))
    except FileNotFoundError:
        return False
