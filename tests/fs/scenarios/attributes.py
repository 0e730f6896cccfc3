"""Attributes: times, modes, owners, kinds, sizes, links, and the extended ones."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fs.oracle import LONG_AGO_NS
from tests.fs.scenarios.scenario import about, look, outcome, touch

_libc = ctypes.CDLL(None, use_errno=True)
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # sys/stat.h
_AT_FDCWD = -100


@about("attributes")
def times_now_and_left_alone(at: Path) -> Iterator[Any]:
    path = touch(at / "file")

    def set_times(target: Path, accessed: tuple[int, int], modified: tuple[int, int], flags: int = 0) -> Any:
        times = struct.pack("4q", *accessed, *modified)
        if _libc.utimensat(_AT_FDCWD, os.fsencode(target), times, flags) != 0:
            return errno.errorcode[ctypes.get_errno()]
        found = os.lstat(target)
        long_ago = LONG_AGO_NS * 1.05
        return tuple(time if time < long_ago else "now" for time in (found.st_atime_ns, found.st_mtime_ns))

    for accessed in ((1, 999_999_999), (0, _UTIME_NOW), (0, _UTIME_OMIT), (-5, 3), (1, 10**9), (2**33, 7)):
        for modified in ((2, 1), (0, _UTIME_NOW), (0, _UTIME_OMIT), (3, -1)):
            yield accessed, modified, set_times(path, accessed, modified)
    (at / "link").symlink_to("missing")
    no_follow = 0x100  # AT_SYMLINK_NOFOLLOW, linux/fcntl.h
    yield set_times(at / "link", (5, 6), (7, 8), no_follow)
    yield set_times(at / "link", (5, 6), (7, 8))
    (at / "directory").mkdir()
    yield set_times(at / "directory", (5, 6), (7, 8))


@about("attributes")
def times_that_operations_change(at: Path) -> Iterator[Any]:
    def changed(watch: Path, operation: Callable[[], object]) -> Any:
        os.utime(watch, ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)
        before = os.lstat(watch)
        while os.stat(clock).st_ctime_ns <= before.st_ctime_ns:  # the kernel's clock for these has a tick
            os.utime(clock)
        result = outcome(operation)
        after = outcome(os.lstat, watch)
        if isinstance(after, str):
            return result, after
        return (
            result if isinstance(result, str) else None,
            before.st_mtime_ns != after.st_mtime_ns,
            before.st_ctime_ns != after.st_ctime_ns,
            after.st_nlink,
        )

    clock = touch(at / "clock")
    file, other, directory = at / "file", at / "other", at / "directory"
    touch(file, content=b"content")
    directory.mkdir()
    fd = os.open(file, os.O_RDWR)
    steps: list[tuple[Path, Callable[[], object]]] = [
        (file, lambda: os.link(file, other)),
        (other, lambda: os.chmod(file, 0o600)),
        (other, lambda: os.chown(file, 5, 6)),
        (other, lambda: os.rename(file, directory / "file")),
        (other, lambda: os.setxattr(other, b"user.a", b"1")),
        (other, lambda: os.removexattr(other, b"user.a")),
        (other, lambda: os.removexattr(other, b"user.a")),
        (other, lambda: os.pwrite(fd, b"x", 0)),
        (other, lambda: os.ftruncate(fd, 1)),
        (other, lambda: os.ftruncate(fd, 1)),
        (other, lambda: os.truncate(other, 1)),
        (other, lambda: os.pwrite(fd, b"", 0)),
        (other, lambda: os.close(os.open(other, os.O_WRONLY | os.O_TRUNC))),
        (other, lambda: os.close(os.open(other, os.O_WRONLY | os.O_TRUNC))),
        (directory, lambda: os.unlink(directory / "file")),
        (directory, lambda: os.mkdir(directory / "below")),
        (directory, lambda: os.rmdir(directory / "below")),
        (directory, lambda: os.symlink("target", directory / "link")),
        (directory, lambda: os.rename(directory / "link", directory / "link2")),
        (directory, lambda: os.rename(directory / "link2", at / "link")),
        (directory, lambda: os.mkdir(at)),
        (directory, lambda: os.close(os.open(directory / "new", os.O_CREAT | os.O_WRONLY))),
        (directory, lambda: os.close(os.open(directory / "new", os.O_CREAT | os.O_WRONLY))),
        (directory, lambda: os.chmod(directory / "new", 0o600)),
    ]
    for number, (watched, step) in enumerate(steps):
        yield number, changed(watched, step)
    os.unlink(other)
    yield os.fstat(fd).st_nlink
    os.close(fd)


@about("attributes")
def modes_and_owners(at: Path) -> Iterator[Any]:
    touch(at / "file")
    (at / "directory").mkdir()
    os.mkfifo(at / "fifo")
    (at / "link").symlink_to("file")
    for name in ("file", "directory", "fifo", "link"):
        for mode in (0, 0o7777, 0o4755, 0o2755, 0o2745, 0o6777, 0o1644):
            for uid, gid in ((-1, -1), (0, -1), (1, 2), (-1, 3), (0, 0)):
                if name != "link":
                    os.chmod(at / name, mode)
                result = outcome(os.chown, at / name, uid, gid, follow_symlinks=False)
                yield name, oct(mode), uid, gid, result, look(at / name)
    yield outcome(os.chown, at / "missing", 0, 0)
    yield outcome(os.chown, at / "file" / "x", 0, 0)


@about("attributes")
def what_creation_makes_of_a_mode(at: Path) -> Iterator[Any]:
    for mask in (0, 0o022, 0o077, 0o777):
        before = os.umask(mask)
        try:
            for mode in (0, 0o7777, 0o4755, 0o644, 0o2770):
                here = f"{mask:o}-{mode:o}"
                os.close(os.open(at / f"{here}-file", os.O_CREAT | os.O_WRONLY, mode))
                os.mkdir(at / f"{here}-directory", mode)
                os.mkfifo(at / f"{here}-fifo", mode)
                os.mknod(at / f"{here}-node", stat.S_IFREG | mode)
                yield [look(at / f"{here}-{kind}") for kind in ("file", "directory", "fifo", "node")]
        finally:
            os.umask(before)


@about("attributes")
def kinds_and_sizes(at: Path) -> Iterator[Any]:
    made = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    for kind in (*made, stat.S_IFDIR, stat.S_IFLNK, 0):
        name = at / f"{kind:o}"
        yield kind, outcome(os.mknod, name, kind | 0o640, os.makedev(1, 3)), look(name)
        yield outcome(lambda name=name: os.lstat(name).st_rdev)
        yield outcome(os.truncate, name, 5)
        yield outcome(os.setxattr, name, b"user.x", b"1")
        yield outcome(os.unlink, name)
    touch(at / "file", content=b"x" * 5000)
    yield os.stat(at / "file").st_blocks
    for size in (-1, 0, 2**40, 2**63 - 1):
        yield outcome(os.truncate, at / "file", size), os.stat(at / "file").st_size
    fd = os.open(at / "file", os.O_RDONLY)
    yield outcome(os.ftruncate, fd, 1)
    yield outcome(os.write, fd, b"x")
    os.close(fd)
    yield outcome(os.truncate, at, 0)


@about("attributes")
def links_of_a_file_seen_from_each_of_its_names(at: Path) -> Iterator[Any]:
    names = [at / f"name-{number}" for number in range(4)]
    touch(names[0])
    for name in names[1:]:
        os.link(names[0], name)
        yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    os.chmod(names[1], 0o600)
    os.truncate(names[2], 77)
    os.chown(names[3], 4, 5)
    yield [look(path) for path in names]
    os.rename(names[0], names[1])  # two names of one file: nothing happens
    yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    touch(at / "other")
    os.rename(at / "other", names[3])
    yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    for name in names:
        os.unlink(name)
        yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    (at / "directory").mkdir()
    yield outcome(os.link, at / "directory", at / "hard")
    os.symlink("missing", at / "soft")
    yield outcome(os.link, at / "soft", at / "soft2", follow_symlinks=False), look(at / "soft2")
    os.mkfifo(at / "fifo")
    yield outcome(os.link, at / "fifo", at / "fifo2"), look(at / "fifo2")
    for number in range(3):
        os.mkdir(at / "directory" / f"{number}")
        yield os.stat(at / "directory").st_nlink
    os.rename(at / "directory" / "1", at / "1")
    yield os.stat(at / "directory").st_nlink


@about("attributes")
def extended_attributes(at: Path) -> Iterator[Any]:
    file, link = touch(at / "file"), at / "link"
    link.symlink_to("file")
    for path in (file, at, link):
        for name in ("user.a", "user.", "user." + "n" * 250, "user." + "n" * 251, "user", "", "other.x", "a" * 300):
            for flags in (0, os.XATTR_CREATE, os.XATTR_REPLACE, os.XATTR_CREATE | os.XATTR_REPLACE, 8):
                result = outcome(os.setxattr, path, name, b"value", flags, follow_symlinks=False)
                yield str(path)[-4:], name[:8], len(name), flags, result
            yield outcome(os.getxattr, path, name, follow_symlinks=False)
        yield sorted(outcome(os.listxattr, path, follow_symlinks=False))
        yield outcome(os.removexattr, path, "user.a", follow_symlinks=False)
        yield outcome(os.removexattr, path, "user.a", follow_symlinks=False)
    for size in (0, 1, 4096, 65536, 65537):
        yield size, outcome(os.setxattr, file, b"user.big", b"v" * size)
    small = ctypes.create_string_buffer(2)
    os.setxattr(file, b"user.c", b"four")
    yield _libc.getxattr(os.fsencode(file), b"user.c", small, 2), errno.errorcode[ctypes.get_errno()]
    yield _libc.listxattr(os.fsencode(file), small, 2), errno.errorcode[ctypes.get_errno()]
