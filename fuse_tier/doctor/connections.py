"""FUSE connections that nobody answers on: who uses such a mount hangs, and so does whoever looks at it.

The kernel counts for each connection what waits (mount/control.py). One is stuck when that was the same all the time
that we looked, and not nothing, and a look through its mount was not answered either. A stuck one of this node's is
aborted when that is asked for: whoever waits gets an error then. Connections of others are named, and never touched.

Looks are made by processes of their own: one that hangs, hangs for as long as the connection does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fuse_tier.doctor.finding import Finding
from fuse_tier.mount import control
from fuse_tier.mount.claim import find_records
from fuse_tier.mount.table import Mount, read_mounts
from fuse_tier.ram.layout import Layout

CHECK: Final = "fuse.connections"
_LOOK_SECONDS: Final = 1.5
_LOOK_EVERY_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Connection:
    """One of a FUSE filesystem that is mounted, or was and is still used."""

    number: int
    about: str
    """What it is, and where, for a person."""
    mountpoint: str | None
    is_ours: bool


def find_connections(
    numbers: Iterable[int], mounts: Iterable[Mount], volumes: Mapping[int, str] | None
) -> list[Connection]:
    """Those with the kernel's numbers. ``volumes`` are the node's, by number; None for all that look like ours. Pure.

    They may be out of sight by now.
    """
    mounted = {mount.minor: mount for mount in mounts if mount.is_fuse}
    found = []
    for number in sorted(numbers):
        mount = mounted.get(number)
        if mount is not None:
            is_ours = mount.is_ours and (volumes is None or number in volumes)
            found.append(Connection(number, f"{mount.filesystem} at {mount.path}", mount.path, is_ours))
        elif volumes is not None and number in volumes:
            about = f"{volumes[number]}, whose mount is out of sight"
            found.append(Connection(number, about, None, True))
        else:
            found.append(Connection(number, "a filesystem that is mounted in another place", None, False))
    return found


def examine(ram: str | None, *, abort: bool) -> list[Finding]:
    """Of the node with its RAM tier at ``ram``, and of others. Blocks for some seconds when anything waits."""
    volumes = None
    if ram is not None:
        records = find_records(Layout(ram))
        volumes = {os.minor(record.device): record.identity for _, record in records if record.device}
    try:
        with control.connections() as directory:
            numbers = [int(name) for name in os.listdir(directory) if name.isdigit()]
            connections = find_connections(numbers, read_mounts(), volumes)
            stuck = _stuck(directory, connections)
            judged = [_judge(directory, connection, waiting, abort=abort) for connection, waiting in stuck]
    except OSError as error:
        return [Finding.skipped(CHECK, str(error))]
    ours = sum(connection.is_ours for connection in connections)
    return judged or [Finding.ok(CHECK, f"none hangs: {ours} of ours, {len(connections) - ours} of others")]


def _stuck(directory: str, connections: Iterable[Connection]) -> list[tuple[Connection, int]]:
    """With how many requests wait."""
    looks = {connection: _Look(connection) for connection in connections}
    left = dict.fromkeys(looks, 0)
    begun = time.monotonic()
    while left and time.monotonic() < begun + 2 * _LOOK_SECONDS:
        time.sleep(_LOOK_EVERY_SECONDS)
        has_begun = time.monotonic() > begun + _LOOK_SECONDS  # until then a look may still be on its way
        for connection, before in list(left.items()):
            left[connection] = waiting = control.waiting(directory, connection.number)
            if looks[connection].is_answered() or (has_begun and (not waiting or waiting != before)):
                del left[connection]
    return list(left.items())


class _Look:
    """A look through a mount, that its daemon may never answer. Of one that is out of sight nothing is known."""

    def __init__(self, connection: Connection) -> None:
        self._process = 0
        if connection.mountpoint is not None:
            silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
            command = ["stat", "--file-system", "--", connection.mountpoint]
            self._process = os.posix_spawnp("stat", command, os.environ, file_actions=silent)

    def is_answered(self) -> bool:
        """With an error, too."""
        return bool(self._process) and os.waitpid(self._process, os.WNOHANG)[0] != 0


def _judge(directory: str, connection: Connection, waiting: int, *, abort: bool) -> Finding:
    about = f"connection {connection.number} ({connection.about}): {waiting} requests wait, and none was answered"
    about += f" for {_LOOK_SECONDS:g} s"
    if not connection.is_ours:
        return Finding.warning(CHECK, about, "it is no mount of ours: see to whose it is")
    if not abort:
        return Finding.failed(
            CHECK,
            about,
            "see the log of its keeper (the fuse container); `fuse-tier doctor --config FILE --abort-stuck` ends it: "
            "whoever uses it gets an error then, and its files stay in the RAM tier",
        )
    try:
        control.abort(directory, connection.number)
    except OSError as error:
        return Finding.failed(CHECK, f"{about}; it cannot be aborted: {error.strerror}", "run this as root")
    return Finding.warning(CHECK, f"{about}: it was aborted", "delete its pod, or `fuse-tier unmount` it")
