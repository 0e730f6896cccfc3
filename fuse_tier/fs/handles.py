"""What the job has open, by file handle, and which inodes have writers.

A file handle knows its inode, its descriptor on the tmpfs and, if it may write, the inode's ``Writing``, which all
its writers share. Handles are made and dropped in one step of the loop each, so that the counts are always right.
"""

from __future__ import annotations

import os


class Writing:
    """An inode that is open for writing."""

    __slots__ = ("count", "synced")

    def __init__(self, synced: bool) -> None:
        self.count = 0
        self.synced = synced
        """Whether nothing is known to have been written since an fsync, or since the file was opened as it was."""


class OpenFile:
    """An open regular file; ``writing`` is None for one that is only read."""

    __slots__ = ("drops_privileges", "fd", "inode", "writing")

    def __init__(self, inode: int, fd: int, writing: Writing | None) -> None:
        self.inode = inode
        self.fd = fd
        self.writing = writing
        self.drops_privileges = False
        """Whether the next write takes setuid and setgid bits away (write(2))."""


class OpenDirectory:
    """An open directory. ``names`` is its listing as of the last time that it was read from the start."""

    __slots__ = ("inode", "names")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.names: list[bytes] = []


class Handles:
    """All handles of one mount."""

    def __init__(self) -> None:
        self.files: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self.writing: dict[int, Writing] = {}  # by inode
        self._last = 0

    def add_file(self, file: OpenFile) -> int:
        """A handle for an open file, whose writer is counted already."""
        self._last += 1
        self.files[self._last] = file
        return self._last

    def add_directory(self, directory: OpenDirectory) -> int:
        """A handle for an open directory."""
        self._last += 1
        self.directories[self._last] = directory
        return self._last

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
