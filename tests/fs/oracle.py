"""A mount and a plain tmpfs directory side by side: each operation is done on both, and has the same outcome.

An outcome is a value or an errno. Times count only when somebody set them (to long ago); inode numbers, blocks
(which a mapping of a hole makes on a tmpfs alone) and the device never do.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_tier.hashing import hash_bytes

LONG_AGO_NS = 1_500_000_000 * 10**9
_libc = ctypes.CDLL(None, use_errno=True)


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
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


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

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def lstat(self, path: bytes) -> Any:
        return described(os.lstat(self.at(path)))

    def read(self, path: bytes) -> bytes:
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
