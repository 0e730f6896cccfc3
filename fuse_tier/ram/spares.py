"""Files whose pages are there before anybody makes them.

A file that is written anew pays for its pages: the kernel takes them one after another, and fills with zeros what a
write leaves of a huge page. Most files of a checkpoint are as large as those of the one before it, so both can be
done ahead, when the node has nothing else to do (replicate/sparing.py). Who makes a file of that size gives a spare
its name instead, and writes as fast as if the file were overwritten.

A spare is named by its size, ``<bytes>.<random>``, and holds so many bytes of pages, and no content: its size is 0.
While one is made or taken, a dot stands before its name. Spares are room that
can be had at any moment (``give_up``), and count as such wherever somebody is told of it.

Everything here blocks; any thread and any process may call it, at any time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.renaming import RENAME_NOREPLACE, rename_with_flags
from fuse_tier.ram.room import allocate

LEAST_BYTES: Final = 32 << 20  # smaller files are written before it would matter
_UNUSED: Final = -1  # a directory's descriptor, where a path is absolute
_OF_A_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC


class Unfinished:
    """A spare whose pages are being had."""

    def __init__(self, fd: int, directory: str, name: str) -> None:
        self._fd = fd
        self._directory = directory
        self._name = name

    def fill(self, start: int, size: int) -> bool:
        """Has some of its pages made; False if it was given up meanwhile. Raises OSError, without room ENOSPC."""
        allocate(self._fd, start, size)
        allocate(self._fd, start, size)  # what was allocated before, the kernel fills with zeros now (mm/shmem.c)
        return os.fstat(self._fd).st_nlink > 0

    def finish(self) -> bool:
        """From now on it can be taken; False if it was given up meanwhile."""
        try:
            os.rename(self._in_directory(f".{self._name}"), self._in_directory(self._name))
        except FileNotFoundError:
            return False
        return True

    def _in_directory(self, name: str) -> str:
        return os.path.join(self._directory, name)


class Spares:
    """Those of one RAM tier."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.spares

    @contextmanager
    def begin(self, size: int) -> Iterator[Unfinished]:
        """A spare of so many bytes, which is gone at the end unless it was finished. Raises OSError."""
        os.makedirs(self._path, mode=0o700, exist_ok=True)
        name = f"{size}.{secrets.token_hex(8)}"
        hidden = os.path.join(self._path, f".{name}")
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OF_A_FILE, 0o600)
        try:
            yield Unfinished(fd, self._path, name)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(hidden)

    def sizes(self) -> list[int]:
        """Of all that can be taken, in bytes."""
        return [int(name.partition(".")[0]) for name in self._names() if not name.startswith(".")]

    def take(self, size: int, access: int, mode: int, directory: int, name: bytes) -> int | None:
        """Gives a spare of exactly this size a name in a directory, and permissions, as open(2) would make a file.

        Gives a descriptor with the ``access`` of open(2); None if there is no such spare. Raises FileExistsError if
        the name is taken, and other OSErrors.
        """
        spare = self._claim(size)
        if spare is None:
            return None
        try:
            fd = os.open(spare, access | _OF_A_FILE)
            try:
                os.fchmod(fd, mode)
                os.utime(fd)
                rename_with_flags(_UNUSED, os.fsencode(spare), directory, name, RENAME_NOREPLACE)
            except BaseException:
                os.close(fd)
                raise
            return fd
        except FileNotFoundError:
            return None  # given up in this moment; or the directory is gone, which the caller finds himself
        finally:
            with suppress(FileNotFoundError):
                os.unlink(spare)

    def take_for_content(self, size: int, path: str) -> int | None:
        """The same for content that lands at a path where nothing is: of this size at once, for us alone."""
        fd = self.take(size, os.O_RDWR, 0o600, _UNUSED, os.fsencode(path))
        if fd is not None:
            os.ftruncate(fd, size)  # its pages stay: only what is beyond the end would go
        return fd

    def _claim(self, size: int) -> str | None:
        """Takes one out of the others' sight: whoever renames it is alone with it."""
        wanted = f"{size}."
        for name in self._names():
            if name.startswith(wanted):
                mine = os.path.join(self._path, f".{name}")
                try:
                    os.rename(os.path.join(self._path, name), mine)
                except FileNotFoundError:  # somebody was faster
                    continue
                return mine
        return None

    def drop(self, size: int) -> None:
        """Gives up one spare of this size, if there is one."""
        for name in self._names():
            if name.startswith(f"{size}."):
                return self._remove(name)
        return None

    def give_up(self) -> None:
        """All of them, those whose pages are being had included."""
        for name in self._names():
            self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # somebody took it
            os.unlink(os.path.join(self._path, name))

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []
