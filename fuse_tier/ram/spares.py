"""Files whose pages are there before anybody makes them.

A file that is written anew pays for its pages: the kernel takes them one after another, and fills with zeros what a
write leaves of a huge page. Most files of a checkpoint are as large as those of the one before it, so both can be
done ahead, when the node has nothing else to do (replicate/sparing.py). Who makes a file of that size gives a spare
its name instead, and writes as fast as if the file were overwritten.

A spare is named by its size, ``<bytes>.<random>``, and holds so many bytes of pages, and no content: its size is 0.
While one is made or taken, a dot stands before its name. Spares are room that
can be had at any moment (``give_up``), and count as such wherever somebody is told of it.

Some are *pieces*: memory that is kept for content of any size, because the host of a virtual machine takes back what
nobody uses. Whoever is about to allocate gives up as much first (``release``), and gets those very pages.

Everything here blocks; any thread and any process may call it, at any time.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.renaming import RENAME_NOREPLACE, rename_with_flags
from fuse_tier.ram.room import allocate

LEAST_BYTES: Final = 32 << 20  # smaller files are written before it would matter
PIECE_BYTES: Final = 64 << 20
_PIECE: Final = f"{PIECE_BYTES}.piece-"
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
        self._lock = threading.Lock()
        self._released = 0  # bytes beyond what was asked for so far

    @contextmanager
    def begin(self, size: int) -> Iterator[Unfinished]:
        """A spare of so many bytes, which is gone at the end unless it was finished. Raises OSError."""
        with self._begin(f"{size}.{secrets.token_hex(8)}") as spare:
            yield spare

    @contextmanager
    def begin_piece(self) -> Iterator[Unfinished]:
        """The same for a piece, of PIECE_BYTES."""
        with self._begin(f"{_PIECE}{secrets.token_hex(8)}") as piece:
            yield piece

    @contextmanager
    def _begin(self, name: str) -> Iterator[Unfinished]:
        os.makedirs(self._path, mode=0o700, exist_ok=True)
        hidden = os.path.join(self._path, f".{name}")
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OF_A_FILE, 0o600)
        try:
            yield Unfinished(fd, self._path, name)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(hidden)

    def sizes(self) -> list[int]:
        """Of all that can be taken, pieces included, in bytes."""
        return [_size(name) for name in self._names() if not name.startswith(".")]

    def sizes_made_for(self) -> list[int]:
        """Of those that were made for files of their size."""
        return [_size(name) for name in self._names() if not name.startswith((".", _PIECE))]

    def pieces(self) -> int:
        """How many there are."""
        return sum(name.startswith(_PIECE) for name in self._names())

    def release(self, size: int) -> None:
        """Frees so many bytes of pieces, in whole pieces, or all that there are: for who allocates them at once."""
        with self._lock:
            if self._released >= size:
                self._released -= size
                return
            for name in self._names():
                if name.startswith(_PIECE):
                    self._remove(name)
                    self._released += PIECE_BYTES
                    if self._released >= size:
                        self._released -= size
                        return
            self._released = 0

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
        """Gives up one spare that was made for this size, if there is one."""
        for name in self._names():
            if name.startswith(f"{size}.") and not name.startswith(_PIECE):
                return self._remove(name)
        return None

    def drop_pieces(self, count: int) -> None:
        """Gives up so many pieces."""
        for name in [name for name in self._names() if name.startswith(_PIECE)][:count]:
            self._remove(name)

    def give_up(self, *, pieces: bool = True) -> None:
        """All of them, those whose pages are being had included; or all but the pieces."""
        for name in self._names():
            if pieces or not name.removeprefix(".").startswith(_PIECE):
                self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # somebody took it
            os.unlink(os.path.join(self._path, name))

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []


def _size(name: str) -> int:
    return int(name.partition(".")[0])
