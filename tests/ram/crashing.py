"""Processes that die between two chosen lines, as after SIGKILL: no `finally` runs, nothing is tidied up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

_DIED, _FAILED = 9, 3


def survives(module: ModuleType, lines: int, work: Callable[[], object]) -> bool:
    """Runs ``work`` in a child that dies before it comes to its line number ``lines`` in ``module``.

    True if it had ended before that. Fails when ``work`` raises.
    """
    child = os.fork()
    if child == 0:
        status = _FAILED
        try:
            _die_after(module, lines)
            work()
            status = 0
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(waited)
    assert status in (0, _DIED), f"the child ended with status {status}"
    return status == 0


def _die_after(module: ModuleType, lines: int) -> None:
    left = lines

    def watch(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            if left == 0:
                os._exit(_DIED)
            left -= 1
        return watch

    sys.settrace(watch)
