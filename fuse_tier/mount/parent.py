"""Whether a process ends with the one that started it, which the kernel sees to (prctl(2))."""

from __future__ import annotations

import ctypes
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that forked it ends."""
    _die_by(signal.SIGKILL)


def outlive_parent() -> None:
    """Takes back what made this process die with the one that started it (``setpriv --pdeathsig``)."""
    _die_by(0)


def _die_by(number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
