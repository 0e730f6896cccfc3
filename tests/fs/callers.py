"""Doing things as somebody else, and seeing what becomes of them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

NOBODY = 65534


def fails_with(code: int, operation: Callable[[], object]) -> None:
    """Holds if the operation fails with this errno."""
    with pytest.raises(OSError) as caught:
        operation()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def as_nobody(action: Callable[[], object], groups: tuple[int, ...] = ()) -> int:
    """Does something as a user without rights, in a process of its own; gives the errno, or 0."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups(list(groups))
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def let_everybody_in(directory: Path) -> None:
    """Makes a directory writable for all, and what is above it passable."""
    for above in directory.parents:
        found = above.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_IXOTH:
            above.chmod(found.st_mode | stat.S_IXOTH)
    directory.chmod(0o1777)
