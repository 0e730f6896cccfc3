"""How full a pod's volume is, and whether it is well: kubelet asks each minute, and shows it as metrics and events.

What a volume holds is counted in the RAM tier itself, not through the mount: that asks no daemon, so it never waits
for one that hangs. What is free is free for all volumes of the node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import trio

from csi.driver import Driver
from csi.health import Health
from csi.records import Records
from csi.refusals import not_found, ran_out
from fuse_tier.deadlines import Deadline
from fuse_tier.identity import Identity
from fuse_tier.ram.layout import Layout

_BLOCK_BYTES = 512  # of st_blocks (stat(2))


@dataclass(frozen=True, slots=True)
class Usage:
    """Of bytes, or of inodes."""

    used: int
    available: int
    total: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What is known of a volume; ``trouble`` is empty while it is well."""

    bytes: Usage
    inodes: Usage
    trouble: str


async def stats_of(volume_id: str, path: str, driver: Driver, records: Records, health: Health) -> Stats:
    """Of a published volume. Raises StatedError (NOT_FOUND when it is not published there)."""
    known = await trio.to_thread.run_sync(records.find, volume_id)
    if known is None or known.target != path:
        raise not_found(f"volume {volume_id} is not published at {path} on this node")
    trouble = await health.trouble(known)
    with trio.move_on_after(Deadline.CHANNEL_CALL):
        used, inodes, error = await trio.to_thread.run_sync(
            _measure, driver.ram, driver.share, Identity.parse(known.identity), abandon_on_cancel=True
        )
        return Stats(used, inodes, trouble or error)
    raise ran_out(f"the RAM tier at {driver.ram} did not answer within {Deadline.CHANNEL_CALL:g} s")


def _measure(ram: str, share: int, identity: Identity) -> tuple[Usage, Usage, str]:
    used = files = 0
    trouble = ""
    try:
        found = os.statvfs(ram)
    except OSError as error:
        nothing = Usage(0, 0, 0)
        return nothing, nothing, f"the RAM tier at {ram} cannot be read: {error.strerror}"
    try:
        for _, directories, names, fd in os.fwalk(Layout(ram).volume(identity).tree):
            files += len(directories) + len(names)
            for name in names:
                try:
                    used += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * _BLOCK_BYTES
                except FileNotFoundError:
                    continue  # the job removed it just now
    except OSError as error:
        trouble = f"the RAM tier at {ram} cannot be read: {error.strerror}"
    if not found.f_bavail:
        trouble = trouble or f"the RAM tier at {ram} is full: writes fail until older checkpoints are in the bucket"
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    if share:
        free, total = min(free, max(0, share - used)), min(total, share)
        if not free:
            trouble = trouble or f"it has used up its share of {share} bytes: its job gives nothing up"
    space = Usage(used, free, total)
    return space, Usage(files, found.f_favail, found.f_files), trouble
