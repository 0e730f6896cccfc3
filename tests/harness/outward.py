"""What a test does outside its own process: starts another one, or listens on a TCP port.

Such a test waits for more than its own processor time, so ``make test-fast`` leaves it out. Which ones do is noticed
here, so that the list of them cannot fall behind.
"""

from __future__ import annotations

import functools
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def noticing() -> Iterator[list[str]]:
    """Gives what has been done outward, as text, by this process while the block runs."""
    done: list[str] = []

    def starting(popen: subprocess.Popen[Any], arguments: Any, *rest: Any, **more: Any) -> None:
        done.append(f"starts {arguments if isinstance(arguments, str) else arguments[0]}")

    def listening(listener: socket.socket, *_: Any) -> None:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            done.append("listens on a TCP port")

    with (
        mock.patch.object(subprocess.Popen, "__init__", _told(subprocess.Popen.__init__, starting)),
        mock.patch.object(socket.socket, "listen", _told(socket.socket.listen, listening)),
    ):
        yield done


def _told(original: Callable[..., None], tell: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def call(*arguments: Any, **more: Any) -> None:
        tell(*arguments, **more)
        original(*arguments, **more)

    return call
