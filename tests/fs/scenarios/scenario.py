"""What programs do with files, small and odd: each scenario says what came of it.

A scenario is given an empty directory and yields outcomes: values, or the errno of what failed. It is run on a mount
and on a plain tmpfs directory, and what it yields must be the same. So none yields what differs by nature: inode
numbers, the time now, block counts of files that are mapped.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.fs.oracle import described

Scenario = Callable[[Path], Iterator[Any]]
SCENARIOS: Final[dict[str, list[Scenario]]] = defaultdict(list)
"""By theme."""


def outcome(operation: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A value, or the name of an errno."""
    try:
        return operation(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, error.errno)


def run(scenario: Scenario, directory: Path) -> list[Any]:
    """All that a scenario yields, in an empty directory."""
    directory.mkdir()
    directory.chmod(0o1777)
    return list(scenario(directory))


def about(theme: str) -> Callable[[Scenario], Scenario]:
    def add(scenario: Scenario) -> Scenario:
        SCENARIOS[theme].append(scenario)
        return scenario

    return add


def look(path: Path | int) -> Any:
    return outcome(lambda: described(os.stat(path) if isinstance(path, int) else os.lstat(path)))


def touch(path: Path, mode: int = 0o644, content: bytes = b"") -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def attempt_open(path: Path, flags: int, mode: int = 0o644) -> Any:
    fd = outcome(os.open, path, flags, mode)
    if isinstance(fd, int):
        os.close(fd)
        return "opened"
    return fd
