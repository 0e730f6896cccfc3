"""What the job has open, by file handle, and which inodes have writers.

A file handle knows its inode, its descriptor on the tmpfs and, if it may write, the inode's ``Writing``, which all
its writers share. Handles are made and dropped in one step of the loop each, so that the counts are always right.
Each is left with the keeper before the kernel hears of it, so that it outlives this process. Between the two nothing
is awaited: so of all that a dead daemon has left, only the last handle can be one that the kernel has not heard of.
The next daemon answers for it, before it has the kernel give requests out again: while one waits to be given out, the
death of its caller takes it back without a word, and its handle would stay open.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fuse_tier.fs.requests import Opened, Request
from fuse_tier.mount.deposits import WORD_KEY, Deposit, Depositor, Kind
from fuse_tier.mount.messages import (
    OPEN_DIRECT,
    OPEN_KEEP_CACHE,
    OPEN_NO_FLUSH,
    OPEN_PASSTHROUGH,
    RESENT,
    Opcode,
)

_GENERATION_BITS: Final = 40  # of a handle are counted by one daemon
_WITH_ENTRY: Final = 1 << 15  # in a deposit's answer: above what FOPEN flags there are
_MAKING: Final = frozenset({Opcode.CREATE, Opcode.TMPFILE})


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What the kernel may not have been told of a file that is open."""

    unique: int
    opened: Opened
    with_entry: bool
    """The attributes come before it."""


class Writing:
    """An inode that is open for writing."""

    __slots__ = ("allocated", "count", "synced")

    def __init__(self, synced: bool) -> None:
        self.allocated = 0
        """Bytes that the file had when its first writer began: what it has more at the end, its writers took."""
        self.count = 0
        self.synced = synced
        """Whether nothing is known to have been written since an fsync, or since the file was opened as it was.

        Where the kernel writes by itself (backing.py) no write is known: whoever relies on it looks at the time of
        the last change as well.
        """


class OpenFile:
    """An open regular file; ``writing`` is None for one that is only read."""

    __slots__ = ("backing", "fd", "inode", "writing")

    def __init__(self, inode: int, fd: int, writing: Writing | None) -> None:
        self.inode = inode
        self.fd = fd
        self.writing = writing
        self.backing = 0
        """By what number the kernel reads and writes it by itself; 0 if it asks us."""

    def answer_flags(self, flags: int) -> int:
        """What the kernel is told of how the file is open, for the flags of open(2)."""
        if self.backing:
            return OPEN_PASSTHROUGH | OPEN_NO_FLUSH
        # Who only writes needs no pages in the kernel's cache: without them content is copied once less.
        if flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_DIRECT:
            return OPEN_DIRECT | OPEN_NO_FLUSH
        # Cached pages stay right from one open to the next: nobody else writes.
        return OPEN_KEEP_CACHE | OPEN_NO_FLUSH


class OpenDirectory:
    """An open directory. ``names`` is its listing as of the last time that it was read from the start."""

    __slots__ = ("inode", "kept", "names")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.names: list[bytes] | None = None
        self.kept = False
        """The keeper has the names."""


class Handles:
    """All handles of one mount."""

    def __init__(self, depositor: Depositor, generation: int) -> None:
        self.files: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self.writing: dict[int, Writing] = {}  # by inode
        self.unreserved = 0
        """Bytes of closed files that the job was the first to touch: they count against its memory limit."""
        self._word: Deposit | None = None  # of a daemon before this one; only such a request can come again
        self._depositor = depositor
        self._last = generation << _GENERATION_BITS

    def adopt(self, deposits: Iterable[tuple[Deposit, int]]) -> None:
        """Takes over what a daemon before this one had open."""
        for deposit, fd in deposits:
            if deposit.kind is Kind.FILE:
                writing = self.begin_writing(deposit.inode, synced=False) if deposit.writes else None
                if writing is not None:
                    writing.allocated = os.fstat(fd).st_blocks * 512
                file = self.files[deposit.key] = OpenFile(deposit.inode, fd, writing)
                file.backing = deposit.backing
            elif deposit.kind is Kind.LISTING:
                directory = self.directories[deposit.key] = OpenDirectory(deposit.inode)
                directory.names = _read_names(fd)
                directory.kept = True
                os.close(fd)
            elif deposit.kind is Kind.WORD:
                self._word = deposit
                os.close(fd)

    def leave_word(self, request: Request, inode: int) -> None:
        """Before what must not be done twice, in place of the last one: no await may come in between.

        The inode is for the request to say what it was about.
        """
        word = Deposit(Kind.WORD, WORD_KEY, inode, request.unique & ~RESENT)
        fd = os.memfd_create("word", os.MFD_CLOEXEC)
        try:
            self._depositor.leave(word, fd)
        finally:
            os.close(fd)

    def word_of(self, request: Request) -> Deposit | None:
        """What a daemon before this one left when it began with this very request; None if it did not."""
        if request.resent and self._word is not None and self._word.unique == request.unique & ~RESENT:
            return self._word
        return None

    def add_file(self, file: OpenFile, flags: int, request: Request) -> Opened:
        """The answer with a handle for an open file, whose writer is counted already. Raises OSError.

        ``flags`` are those of the answer (FOPEN).
        """
        self._last += 1
        answer = flags | (_WITH_ENTRY if request.opcode in _MAKING else 0)
        writes = file.writing is not None
        deposit = Deposit(Kind.FILE, self._last, file.inode, request.unique, file.backing, writes, answer)
        self._depositor.leave(deposit, file.fd)
        self.files[self._last] = file
        return Opened(self._last, flags, file.backing)

    def remove_file(self, handle: int) -> OpenFile | None:
        """Drops a handle; None if there is none. Its descriptor is the caller's to close."""
        file = self.files.pop(handle, None)
        if file is not None:
            self._depositor.remove(handle)
        return file

    def file(self, inode: int) -> OpenFile | None:
        """Some handle of an inode."""
        return next((file for file in self.files.values() if file.inode == inode), None)

    def add_directory(self, inode: int) -> int:
        """A handle for an open directory."""
        self._last += 1
        self.directories[self._last] = OpenDirectory(inode)
        return self._last

    def directory(self, handle: int, inode: int) -> OpenDirectory:
        """An open directory; of one that an earlier daemon opened the handle and the inode are all there is."""
        return self.directories.setdefault(handle, OpenDirectory(inode))

    def keep_listing(self, handle: int, directory: OpenDirectory) -> None:
        """Before a part of a listing is answered: sees to it that the rest of it stays the same."""
        fd = os.memfd_create("listing", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(b"".join(name + b"\0" for name in directory.names or ()))
            self._depositor.leave(Deposit(Kind.LISTING, handle, directory.inode), fd)
        finally:
            os.close(fd)
        directory.kept = True

    def remove_directory(self, handle: int) -> None:
        """Drops a handle, if it is there."""
        directory = self.directories.pop(handle, None)
        if directory is not None and directory.kept:
            self._depositor.remove(handle)

    def begin_writing(self, inode: int, *, synced: bool) -> Writing:
        """Counts a writer; ``synced`` says that the content is whole as it is, if it is the first one."""
        writing = self.writing.get(inode)
        if writing is None:
            writing = self.writing[inode] = Writing(synced)
        writing.count += 1
        return writing

    def end_writing(self, inode: int) -> bool:
        """The reverse; says whether it was the last one."""
        writing = self.writing[inode]
        writing.count -= 1
        if writing.count:
            return False
        del self.writing[inode]
        return True

    def writers(self) -> list[tuple[int, bool]]:
        """Inodes with writers, and whether each is synced."""
        return [(inode, writing.synced) for inode, writing in self.writing.items()]

    def close(self) -> None:
        """Closes what is still open when the mount has ended."""
        for file in self.files.values():
            os.close(file.fd)
        self.files.clear()
        self.directories.clear()
        self.writing.clear()


def perhaps_unanswered(deposits: Iterable[tuple[Deposit, int]]) -> Unanswered | None:
    """The answer that daemons before this one may have owed the kernel when they ended."""
    last = max((deposit for deposit, _ in deposits if deposit.kind is Kind.FILE), key=lambda it: it.key, default=None)
    if last is None or not last.answer:
        return None
    opened = Opened(last.key, last.answer & ~_WITH_ENTRY, last.backing)
    return Unanswered(last.unique, opened, with_entry=bool(last.answer & _WITH_ENTRY))


def _read_names(fd: int) -> list[bytes]:
    return os.pread(fd, os.fstat(fd).st_size, 0).split(b"\0")[:-1]
