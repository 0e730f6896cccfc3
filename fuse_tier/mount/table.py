"""What the kernel says is mounted where: ``/proc/self/mountinfo``, and nothing that asks a filesystem.

Reading the table never blocks on a filesystem that has stopped answering, a ``stat`` may: so this is looked
at first. Paths in it have no symlinks in them; ``canonical`` makes one that can be compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

FILESYSTEM = "fuse.fuse_tier"  # never anything like gcsfuse: frameworks look for that and change behaviour
_TABLE = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")  # proc(5): space, tab, newline, backslash (and # in sources)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table."""

    number: int
    major: int
    minor: int
    """Of the device number that ``stat`` shows, and for FUSE the connection's name below /sys/fs/fuse."""
    path: str
    filesystem: str
    source: str

    @property
    def is_fuse(self) -> bool:
        """Whether a process answers for it."""
        return self.filesystem.partition(".")[0] in ("fuse", "fuseblk")

    @property
    def is_ours(self) -> bool:
        """Whether it is a volume of fuse-tier, of this node or another."""
        return self.filesystem == FILESYSTEM

    @property
    def device(self) -> int:
        """As in ``st_dev``."""
        return os.makedev(self.major, self.minor)


def parse_mount_table(table: bytes) -> tuple[Mount, ...]:
    """The mounts of a ``mountinfo`` (proc(5)), in its order: of two on one path the later hides the earlier."""
    return tuple(_parse_line(line) for line in table.split(b"\n") if line)


def _parse_line(line: bytes) -> Mount:
    # 36 35 98:0 /root /mountpoint options [optional fields ...] - type source super-options
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)
    major, _, minor = fields[2].partition(b":")
    return Mount(
        number=int(fields[0]),
        major=int(major),
        minor=int(minor),
        path=_unescape(fields[4]),
        filesystem=_unescape(fields[dash + 1]),
        source=_unescape(fields[dash + 2]),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def read_mounts() -> tuple[Mount, ...]:
    """All mounts that this process sees."""
    with open(_TABLE, "rb") as table:
        return parse_mount_table(table.read())


def mount_at(path: str, mounts: Iterable[Mount] | None = None) -> Mount | None:
    """What is mounted at the canonical ``path`` itself, the uppermost if there are several."""
    found = None
    for mount in read_mounts() if mounts is None else mounts:
        if mount.path == path:
            found = mount
    return found


def mount_around(path: str, mounts: Iterable[Mount] | None = None) -> Mount | None:
    """The mount that the canonical ``path`` lies in, not counting one at ``path`` itself."""
    found = None
    for mount in read_mounts() if mounts is None else mounts:
        if (
            mount.path != path
            and is_inside(path, mount.path)
            and (found is None or is_inside(mount.path, found.path))
        ):
            found = mount
    return found


def is_inside(path: str, directory: str) -> bool:
    """Whether the canonical ``path`` is ``directory`` or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def canonical(path: str) -> str:
    """``path`` without symlinks, ``..`` and the like in its parents; its last part is left as it is.

    The last part is not looked at, so that a mountpoint whose filesystem no longer answers has a name too.
    """
    parent, name = os.path.split(os.path.normpath(path))
    return os.path.join(os.path.realpath(parent), name)


def is_ours(path: str) -> bool:
    """Whether a volume of fuse-tier is mounted at ``path``, alive or dead."""
    mount = mount_at(canonical(path))
    return mount is not None and mount.is_ours
