"""A mount and a plain tmpfs directory side by side: each operation is done on both, and has the same outcome.

An outcome is a value or an errno. Times count only when somebody set them (to long ago); inode numbers, blocks
(which a mapping of a hole makes on a tmpfs alone) and the device never do.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_tier.hashing import hash_bytes
from tests.fs.callers import as_nobody

LONG_AGO_NS = 1_500_000_000 * 10**9
_OFD_SETLK = 37  # F_OFD_SETLK, linux/fcntl.h: Python 3.11 lacks the name
_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = _libc.closedir.argtypes = _libc.telldir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_NAME_AT = 19  # of d_name in struct dirent


@dataclass(frozen=True, slots=True)
class Failed:
    """The operation failed with this errno."""

    code: int

    def __str__(self) -> str:
        return os.strerror(self.code)


def described(found: os.stat_result) -> tuple[Any, ...]:
    """What must be the same on both sides."""
    times = [time if time < LONG_AGO_NS * 1.05 else None for time in (found.st_mtime_ns,)]
    return (oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, found.st_size, *times)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(-100, old, -100, new, flags):
        raise _failure()


class Listing:
    """An open directory stream, with its offsets."""

    def __init__(self, path: bytes) -> None:
        self._stream = _libc.opendir(path)
        if not self._stream:
            raise _failure()

    def next(self) -> tuple[int, bytes] | None:
        """Where the stream stood, and the name that came; None at the end."""
        offset = _libc.telldir(self._stream)
        entry = _libc.readdir(self._stream)
        return (offset, ctypes.string_at(entry + _NAME_AT)) if entry else None

    def rest(self) -> list[tuple[int, bytes]]:
        """All that is still to come."""
        return list(iter(self.next, None))

    def seek(self, offset: int) -> None:
        _libc.seekdir(self._stream, offset)

    def close(self) -> None:
        _libc.closedir(self._stream)


def _failure() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


class Side:
    """One of the two. Paths are relative, bytes; open files go by number, in the order of their opening."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.files: list[int] = []

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def try_(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """The outcome of a method of this class."""
        try:
            return operation(self, *arguments)
        except OSError as error:
            assert error.errno is not None
            return Failed(error.errno)

    def open(self, path: bytes, flags: int, mode: int) -> None:
        self.files.append(os.open(self.at(path), flags | os.O_CLOEXEC, mode))

    def close(self, number: int) -> None:
        os.close(self.files.pop(number))

    def pwrite(self, number: int, offset: int, content: bytes) -> int:
        return os.pwrite(self.files[number], content, offset)

    def append(self, number: int, content: bytes) -> int:
        os.lseek(self.files[number], 0, os.SEEK_END)
        return os.write(self.files[number], content)

    def pread(self, number: int, offset: int, size: int) -> bytes:
        return os.pread(self.files[number], size, offset)

    def map_and_write(self, number: int, content: bytes) -> bytes:
        with mmap.mmap(self.files[number], 0) as mapped:
            mapped[: len(content)] = content[: len(mapped)]
            return mapped[:]

    def ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self.files[number], size)

    def fstat(self, number: int) -> Any:
        return described(os.fstat(self.files[number]))

    def fchmod(self, number: int, mode: int) -> None:
        os.fchmod(self.files[number], mode)

    def futime(self, number: int, time_ns: int) -> None:
        os.utime(self.files[number], ns=(time_ns, time_ns))

    def fsync(self, number: int) -> None:
        os.fsync(self.files[number])

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self.files[number], mode, offset, length):
            raise _failure()

    def seek_content(self, number: int, offset: int, whence: int) -> int:
        return os.lseek(self.files[number], offset, whence)

    def copy_range(self, source: int, offset: int, target: int, target_offset: int, length: int) -> int:
        return os.copy_file_range(self.files[source], self.files[target], length, offset, target_offset)

    def sendfile(self, source: int, offset: int, target: int, length: int) -> int:
        return os.sendfile(self.files[target], self.files[source], offset, length)

    def open_nameless(self, path: bytes, mode: int) -> None:
        self.files.append(os.open(self.at(path), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode))

    def write_nameless(self, content: bytes) -> int:
        self.open_nameless(b"", 0o600)
        return os.write(self.files[-1], content)

    def free_bytes(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def give_name(self, number: int, path: bytes) -> None:
        os.link(b"/proc/self/fd/%d" % self.files[number], self.at(path), follow_symlinks=True)

    def flock(self, number: int, operation: int) -> None:
        fcntl.flock(self.files[number], operation | fcntl.LOCK_NB)

    def lock_range(self, number: int, kind: int, start: int, length: int) -> None:
        fcntl.fcntl(self.files[number], _OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0))

    def write_from_all_sides(self, path: bytes, writers: int, content: bytes) -> bytes:
        """Several writers at once, each with a file of its own and a part of its own."""
        files = [os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644) for _ in range(writers)]

        def write(number: int) -> None:
            for part in range(4):
                os.pwrite(files[number], content, (part * writers + number) * len(content))

        try:
            with ThreadPoolExecutor(writers) as threads:
                list(threads.map(write, range(writers)))  # raises what one of them raised
        finally:
            for file in files:
                os.close(file)
        return self.read(path)

    def append_from_all_sides(self, path: bytes, writers: int) -> list[bytes]:
        """Several writers at once, all at the end; the file is empty before and after."""
        files = [
            os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK) for _ in range(writers)
        ]

        def append(number: int) -> None:
            for part in range(8):
                os.write(files[number], b"\n%02d-%02d" % (number, part))

        try:
            os.ftruncate(files[0], 0)
            with ThreadPoolExecutor(writers) as threads:
                list(threads.map(append, range(writers)))  # raises what one of them raised
        finally:
            for file in files:
                os.close(file)
        lines = sorted(self.read(path).splitlines())
        os.truncate(self.at(path), 0)
        return lines

    def list_with_seeks(self, path: bytes, places: list[int]) -> tuple[list[bytes], bool]:
        """The names, and whether each place in the listing, gone back to, shows what came there before."""
        listing = Listing(self.at(path))
        try:
            entries = listing.rest()
            same = True
            for place in places:
                listing.seek(entries[place % len(entries)][0])
                same &= [name for _, name in listing.rest()] == [name for _, name in entries[place % len(entries) :]]
            return sorted(name for _, name in entries), same
        finally:
            listing.close()

    def list_while_it_changes(self, path: bytes, read: int, number: int) -> tuple[list[bytes], int]:
        """The names that are there all the while, as often as they come, while others come and go."""
        passing = [os.path.join(self.at(path), b"passing-%d" % (number + place)) for place in range(20)]
        for name in passing[:10]:
            os.mkdir(name)
        listing = Listing(self.at(path))
        try:
            seen = [entry[1] for _ in range(read) if (entry := listing.next())]
            for name in passing[:10]:
                os.rmdir(name)
            for name in passing[10:]:
                os.mkdir(name)
            seen += [name for _, name in listing.rest()]
        finally:
            listing.close()
        for name in passing[10:]:
            os.rmdir(name)
        return sorted(name for name in seen if not name.startswith(b"passing-")), len(seen) - len(set(seen))

    def set_one_time(self, path: bytes, which: int, time_ns: int) -> None:
        omit = (1 << 30) - 2  # UTIME_OMIT, sys/stat.h
        chosen = struct.pack("2q", *divmod(time_ns, 10**9))
        other = struct.pack("2q", 0, omit)
        times = chosen + other if which == 0 else other + chosen
        if _libc.utimensat(-100, self.at(path), times, 0x100):  # AT_SYMLINK_NOFOLLOW
            raise _failure()

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(self.at(path), mode)

    def somebody_else(self, path: bytes, what: int) -> int:
        """What a user without rights may do; the errno, or 0."""
        there = self.at(path)
        attempts: tuple[Callable[[], object], ...] = (
            lambda: os.close(os.open(there, os.O_RDONLY | os.O_NONBLOCK)),
            lambda: os.close(os.open(there, os.O_WRONLY | os.O_NONBLOCK)),
            lambda: os.chmod(there, 0o700),
            lambda: os.unlink(there),
            lambda: os.mkdir(there + b"-theirs"),
            lambda: os.truncate(there, 10),
            lambda: os.rename(there, there + b"2"),
            lambda: os.pwrite(os.open(there, os.O_WRONLY | os.O_NONBLOCK), b"x", 0),
            lambda: os.chown(there, -1, 65534),
        )
        return as_nobody(attempts[what % len(attempts)])

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def lstat(self, path: bytes) -> Any:
        return described(os.lstat(self.at(path)))

    def read(self, path: bytes) -> bytes:
        if not stat.S_ISREG(os.stat(self.at(path)).st_mode):  # a pipe would wait for somebody to write to it
            return b""
        with open(self.at(path), "rb") as file:
            return file.read()

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        renameat2(self.at(old), self.at(new), flags)

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self.at(old), self.at(new), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.at(path))

    def mknod(self, path: bytes, mode: int) -> None:
        os.mknod(self.at(path), mode)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, time_ns: int) -> None:
        os.utime(self.at(path), ns=(time_ns, time_ns), follow_symlinks=False)

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self.at(path)))

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self.at(path), name, follow_symlinks=False)

    def listxattr(self, path: bytes) -> list[str]:
        return sorted(os.listxattr(self.at(path), follow_symlinks=False))

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def walk(self) -> dict[bytes, Any]:
        """The whole tree: attributes, link targets, content."""
        tree: dict[bytes, Any] = {}
        pending = [b""]
        while pending:
            path = pending.pop()
            found = os.lstat(self.at(path))
            content: Any = None
            if stat.S_ISDIR(found.st_mode):
                pending += [os.path.join(path, name) for name in os.listdir(self.at(path))]
            elif stat.S_ISREG(found.st_mode):
                content = hash_bytes(self.read(path)).name
            elif stat.S_ISLNK(found.st_mode):
                content = self.readlink(path)
            tree[path] = (described(found) if path else None, content)
        return tree

    def close_all(self) -> None:
        while self.files:
            os.close(self.files.pop())
