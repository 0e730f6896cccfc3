"""A tmpfs that is small, or can be full for a while."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096


@contextmanager
def small_tmpfs(path: Path, size_bytes: int) -> Iterator[Path]:
    """One of so many bytes, mounted at a directory that is made if it is not there."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


class Fillable:
    """A tmpfs of its own at ``path``, mounted by somebody else with this many bytes.

    It becomes full by being made smaller, which takes no time and no memory. To who uses it that is the same.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size = size_bytes

    @contextmanager
    def filled_up(self, pages: int) -> Iterator[None]:
        """So many pages are free at the start, if nothing becomes free just then."""
        found = os.statvfs(self._path)
        self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + pages * PAGE)
        try:
            yield
        finally:
            self._resize(self._size)

    def _resize(self, size_bytes: int) -> None:
        subprocess.run(["mount", "-i", "-o", f"remount,size={size_bytes}", self._path], check=True)
