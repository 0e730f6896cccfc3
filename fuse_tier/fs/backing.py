"""Files that the kernel reads and writes by itself, without asking us: FUSE passthrough.

The kernel wants all handles that an inode has at a time to agree: all through the same backing, or none. So the
first decides, and the decision lasts until the last of them is closed.
"""

from __future__ import annotations

import errno
from typing import Final

import structlog

from fuse_tier.mount.device import Device

log = structlog.get_logger(__name__)

_NONE: Final = 0


class _Backing:
    __slots__ = ("count", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0


class Backings:
    """The backings of one mount, by inode."""

    def __init__(self, device: Device, *, enabled: bool) -> None:
        self.enabled = enabled
        self._device = device
        self._backings: dict[int, _Backing] = {}

    def open(self, inode: int, fd: int, *, allowed: bool) -> int:
        """Counts a handle of a file; gives its backing's number, 0 for none. Raises OSError.

        Where it is the only handle and not ``allowed``, there will be none until its end.
        """
        if not self.enabled:
            return _NONE
        backing = self._backings.get(inode)
        if backing is None:
            backing = self._backings[inode] = _Backing(self._device.open_backing(fd) if allowed else _NONE)
        backing.count += 1
        return backing.number

    def adopt(self, inode: int, number: int) -> None:
        """Counts a handle that a daemon before this one has opened."""
        if self.enabled:
            self._backings.setdefault(inode, _Backing(number)).count += 1

    def close(self, inode: int) -> None:
        """Counts a handle's end."""
        backing = self._backings.get(inode)
        if backing is None:
            return
        backing.count -= 1
        if not backing.count:
            del self._backings[inode]
            if backing.number:
                self._device.close_backing(backing.number)

    def close_lost(self, highest_known: int, fd: int) -> None:
        """Closes what a daemon opened just before it died, too late to leave word of it.

        Numbers are given out in ascending order: what lies above the highest that is known, and was given out
        before one that is opened now (for any ``fd``), is nobody's.
        """
        if not self.enabled:
            return
        newest = self._device.open_backing(fd)
        for number in range(highest_known + 1, newest + 1):
            try:
                self._device.close_backing(number)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
            else:
                if number != newest:
                    log.info("backing.closed", number=number)
