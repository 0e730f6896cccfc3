"""Whether a volume's keeper lives, and which of those that have a copy of its mount comes after it.

The claim's lock (claim.py) is held by whoever has its descriptor, copies included: it says that somebody has the
mount, and not who. Beside it is this one, on a byte of the same file that nothing is ever written to. A keeper holds
it as a process (POSIX): it goes with that, and with nothing else. An heir holds it by a descriptor that it passes to
nobody (OFD). So a keeper that lives has no heir, and one that is dead has one at most.

A process loses a POSIX lock when it closes any descriptor of the file: a keeper opens it only once.
"""

from __future__ import annotations

import fcntl
import os
from enum import Enum
from struct import Struct
from typing import Final

_AT: Final = 1 << 40  # far behind whatever is written
_FLOCK: Final = Struct("hhqqi4x")  # struct flock of fcntl(2) with 64-bit offsets: type, whence, start, length, pid
_OF_A_DESCRIPTION: Final = -1  # in place of the pid of who holds a lock


class Holder(Enum):
    """Who has the lock."""

    NOBODY = 0
    KEEPER = 1
    HEIR = 2


def stand_as_keeper(fd: int) -> bool:
    """Takes the lock for this process, until it ends; False while an heir of the keeper before holds it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _AT)
    except BlockingIOError:
        return False
    return True


def holder_of(fd: int) -> Holder:
    """Who stands for the claim with this descriptor, this process aside."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _AT, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return Holder.NOBODY
    return Holder.HEIR if pid == _OF_A_DESCRIPTION else Holder.KEEPER


class Heir:
    """Comes after a keeper that has ended. Made by ``inherit``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Makes place for the next."""
        os.close(self._fd)


def inherit(fd: int) -> Heir | None:
    """Stands in for the keeper of the claim with this descriptor; None while another does, or the keeper lives."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(own, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _AT, 1, 0))
    except BlockingIOError:
        os.close(own)
        return None
    except BaseException:
        os.close(own)
        raise
    return Heir(own)
