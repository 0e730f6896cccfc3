"""What programs do with files, small and odd: each scenario says what came of it.

A scenario is given an empty directory and yields outcomes: values, or the errno of what failed. It is run on a mount
and on a plain tmpfs directory, and what it yields must be the same. So none yields what differs by nature: inode
numbers, the time now, block counts of files that are mapped.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.fs.callers import NOBODY, as_nobody
from tests.fs.oracle import LONG_AGO_NS, described, renameat2

Scenario = Callable[[Path], Iterator[Any]]
SCENARIOS: Final[dict[str, list[Scenario]]] = defaultdict(list)
"""By theme."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # sys/stat.h
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE, _WHITEOUT = 1, 2, 4  # linux/fs.h
_OFD_SETLK = 37  # linux/fcntl.h: Python 3.11 lacks the name


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


def _about(theme: str) -> Callable[[Scenario], Scenario]:
    def add(scenario: Scenario) -> Scenario:
        SCENARIOS[theme].append(scenario)
        return scenario

    return add


def _look(path: Path | int) -> Any:
    return outcome(lambda: described(os.stat(path) if isinstance(path, int) else os.lstat(path)))


def _touch(path: Path, mode: int = 0o644, content: bytes = b"") -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def _open(path: Path, flags: int, mode: int = 0o644) -> Any:
    fd = outcome(os.open, path, flags, mode)
    if isinstance(fd, int):
        os.close(fd)
        return "opened"
    return fd


@_about("names")
def names_that_are_odd_or_too_long(at: Path) -> Iterator[Any]:
    root = os.fsencode(at)
    odd = (b"\n", b" ", b"-", b"...", b"a\\b", b"*", "é".encode(), b"", b"a\tb")
    for name in (b"n" * 255, b"n" * 256, b"\xff" * 255, *odd):
        yield outcome(os.mkdir, root + b"/" + name)
    yield sorted(os.listdir(root))
    for name in (b".", b"..", b"missing/../x", b"\n/", b"\n/.", b"\n/.."):
        yield outcome(os.rmdir, root + b"/" + name)
        yield outcome(os.mkdir, root + b"/" + name)


@_about("names")
def paths_as_long_as_they_may_be(at: Path) -> Iterator[Any]:
    fd = os.open(at, os.O_RDONLY)
    # PATH_MAX counts the terminating zero.
    for length in (4095, 4096, 5000):
        path = b"./" * (length // 2) + b"f" * (length % 2)
        yield outcome(lambda path=path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, dir_fd=fd)))
        yield outcome(lambda path=path: os.symlink(path, "link", dir_fd=fd))
        yield outcome(lambda: len(os.readlink("link", dir_fd=fd)))
        outcome(os.unlink, "link", dir_fd=fd)
    os.close(fd)


@_about("names")
def symlinks_in_circles_and_to_nowhere(at: Path) -> Iterator[Any]:
    (at / "one").symlink_to("two")
    (at / "two").symlink_to("one")
    (at / "lost").symlink_to("missing")
    (at / "self").symlink_to(".")
    for name in ("one", "lost", "self", "one/x", "lost/x", "self/self/self/one"):
        yield outcome(os.listdir, at / name)
        yield _open(at / name, os.O_RDONLY)
        yield _open(at / name, os.O_RDONLY | os.O_NOFOLLOW)
        yield _open(at / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        yield outcome(lambda name=name: os.stat(at / name) and None)
        yield outcome(os.chmod, at / name, 0o700)
        yield outcome(os.truncate, at / name, 1)
        yield outcome(os.rmdir, at / name)
    yield outcome(os.symlink, "", at / "empty")
    yield outcome(os.readlink, at)


@_about("names")
def removing_what_cannot_be_removed(at: Path) -> Iterator[Any]:
    (at / "full" / "below").mkdir(parents=True)
    _touch(at / "file")
    yield outcome(os.unlink, at / "full")
    yield outcome(os.rmdir, at / "full")
    yield outcome(os.rmdir, at / "file")
    yield outcome(os.unlink, at / "file" / "below")
    yield outcome(os.unlink, at / "missing")
    yield outcome(os.rmdir, at / "full" / "below" / "..")
    yield outcome(os.rmdir, f"{at}/full/below/.")
    yield outcome(os.unlink, f"{at}/file/")
    yield outcome(os.rmdir, f"{at}/full/below/")


@_about("names")
def making_what_is_there(at: Path) -> Iterator[Any]:
    _touch(at / "file")
    (at / "directory").mkdir()
    (at / "lost").symlink_to("missing")
    for name in ("file", "directory", "lost", "file/below"):
        yield outcome(os.mkdir, at / name)
        yield outcome(os.mkfifo, at / name)
        yield outcome(os.symlink, "target", at / name)
        yield outcome(os.link, at / "file", at / name)
        yield _open(at / name, os.O_CREAT | os.O_EXCL | os.O_RDWR)


@_about("rename")
def renames_of_everything_over_everything(at: Path) -> Iterator[Any]:
    def make(kind: str, path: Path) -> None:
        match kind:
            case "file":
                _touch(path, content=b"content")
            case "empty":
                path.mkdir()
            case "full":
                (path / "below").mkdir(parents=True)
            case "link":
                path.symlink_to("missing")
            case "fifo":
                os.mkfifo(path)

    kinds = ("file", "empty", "full", "link", "fifo", "nothing")
    for flags in (0, _NOREPLACE, _EXCHANGE, _NOREPLACE | _EXCHANGE, _WHITEOUT, _WHITEOUT | _EXCHANGE, 8):
        for old in kinds:
            for new in kinds:
                here = at / f"{flags}-{old}-{new}"
                here.mkdir()
                make(old, here / "old")
                make(new, here / "new")
                result = outcome(renameat2, os.fsencode(here / "old"), os.fsencode(here / "new"), flags)
                yield flags, old, new, result, _look(here / "old"), _look(here / "new")


@_about("rename")
def renames_that_make_no_sense(at: Path) -> Iterator[Any]:
    (at / "a" / "b").mkdir(parents=True)
    _touch(at / "file")
    os.link(at / "file", at / "same")
    for old, new in (
        ("a", "a/b/c"), ("a", "a/b"), ("a/b", "a"), ("a/.", "c"), ("a", "file/x"), ("file", "a/"), ("file/", "g"),
        ("file", "same"), ("file", "file"), ("a", "a"), ("missing", "file"), ("a/..", "q"), ("file", "n" * 256),
    ):  # fmt: skip
        for flags in (0, _NOREPLACE, _EXCHANGE):
            paths = (os.fsencode(f"{at}/{old}"), os.fsencode(f"{at}/{new}"))
            yield old, new[:10], flags, outcome(renameat2, *paths, flags)
    yield sorted(os.listdir(at))
    yield _look(at / "file")


@_about("attributes")
def times_now_and_left_alone(at: Path) -> Iterator[Any]:
    path = _touch(at / "file")

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


@_about("attributes")
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

    clock = _touch(at / "clock")
    file, other, directory = at / "file", at / "other", at / "directory"
    _touch(file, content=b"content")
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


@_about("attributes")
def modes_and_owners(at: Path) -> Iterator[Any]:
    _touch(at / "file")
    (at / "directory").mkdir()
    os.mkfifo(at / "fifo")
    (at / "link").symlink_to("file")
    for name in ("file", "directory", "fifo", "link"):
        for mode in (0, 0o7777, 0o4755, 0o2755, 0o2745, 0o6777, 0o1644):
            for uid, gid in ((-1, -1), (0, -1), (1, 2), (-1, 3), (0, 0)):
                if name != "link":
                    os.chmod(at / name, mode)
                result = outcome(os.chown, at / name, uid, gid, follow_symlinks=False)
                yield name, oct(mode), uid, gid, result, _look(at / name)
    yield outcome(os.chown, at / "missing", 0, 0)
    yield outcome(os.chown, at / "file" / "x", 0, 0)


@_about("attributes")
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
                yield [_look(at / f"{here}-{kind}") for kind in ("file", "directory", "fifo", "node")]
        finally:
            os.umask(before)


@_about("attributes")
def kinds_and_sizes(at: Path) -> Iterator[Any]:
    made = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    for kind in (*made, stat.S_IFDIR, stat.S_IFLNK, 0):
        name = at / f"{kind:o}"
        yield kind, outcome(os.mknod, name, kind | 0o640, os.makedev(1, 3)), _look(name)
        yield outcome(lambda name=name: os.lstat(name).st_rdev)
        yield outcome(os.truncate, name, 5)
        yield outcome(os.setxattr, name, b"user.x", b"1")
        yield outcome(os.unlink, name)
    _touch(at / "file", content=b"x" * 5000)
    yield os.stat(at / "file").st_blocks
    for size in (-1, 0, 2**40, 2**63 - 1):
        yield outcome(os.truncate, at / "file", size), os.stat(at / "file").st_size
    fd = os.open(at / "file", os.O_RDONLY)
    yield outcome(os.ftruncate, fd, 1)
    yield outcome(os.write, fd, b"x")
    os.close(fd)
    yield outcome(os.truncate, at, 0)


@_about("attributes")
def links_of_a_file_seen_from_each_of_its_names(at: Path) -> Iterator[Any]:
    names = [at / f"name-{number}" for number in range(4)]
    _touch(names[0])
    for name in names[1:]:
        os.link(names[0], name)
        yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    os.chmod(names[1], 0o600)
    os.truncate(names[2], 77)
    os.chown(names[3], 4, 5)
    yield [_look(path) for path in names]
    os.rename(names[0], names[1])  # two names of one file: nothing happens
    yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    _touch(at / "other")
    os.rename(at / "other", names[3])
    yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    for name in names:
        os.unlink(name)
        yield [outcome(lambda path=path: os.stat(path).st_nlink) for path in names]
    (at / "directory").mkdir()
    yield outcome(os.link, at / "directory", at / "hard")
    os.symlink("missing", at / "soft")
    yield outcome(os.link, at / "soft", at / "soft2", follow_symlinks=False), _look(at / "soft2")
    os.mkfifo(at / "fifo")
    yield outcome(os.link, at / "fifo", at / "fifo2"), _look(at / "fifo2")
    for number in range(3):
        os.mkdir(at / "directory" / f"{number}")
        yield os.stat(at / "directory").st_nlink
    os.rename(at / "directory" / "1", at / "1")
    yield os.stat(at / "directory").st_nlink


@_about("attributes")
def extended_attributes(at: Path) -> Iterator[Any]:
    file, link = _touch(at / "file"), at / "link"
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


@_about("opening")
def flags_of_open(at: Path) -> Iterator[Any]:
    _touch(at / "file", content=b"content")
    (at / "directory").mkdir()
    (at / "link").symlink_to("file")
    for name in ("file", "directory", "link", "missing", "file/x", "directory/"):
        for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3):
            for flags in (
                0, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_TRUNC, os.O_APPEND, os.O_EXCL, os.O_PATH,
                os.O_CREAT | os.O_DIRECTORY, os.O_SYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_DIRECT,
            ):  # fmt: skip
                yield name, access, flags, _open(at / name, access | flags)
    yield _look(at / "file")


@_about("opening")
def sockets_and_pipes(at: Path) -> Iterator[Any]:
    os.mkfifo(at / "fifo")
    yield _open(at / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open(at / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(at / "fifo", os.O_WRONLY)
    yield os.write(writer, b"through"), os.read(reader, 100), outcome(os.lseek, reader, 0, os.SEEK_SET)
    os.close(reader)
    os.close(writer)
    here = os.getcwd()
    os.chdir(at)  # the address of a socket is at most 107 bytes
    try:
        server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        with server, client:
            yield outcome(server.bind, "socket"), _look(at / "socket")
            yield outcome(client.connect, "socket")  # nobody listens
            server.listen()
            yield outcome(client.connect, "socket")
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                yield accepted.recv(100)
            yield _open(at / "socket", os.O_RDWR)
            again = socket.socket(socket.AF_UNIX)
            with again:
                yield outcome(again.bind, "socket")
            os.rename("socket", "moved")
            with socket.socket(socket.AF_UNIX) as late:
                yield outcome(late.connect, "moved")
    finally:
        os.chdir(here)
    os.unlink(at / "moved")


@_about("opening")
def programs(at: Path) -> Iterator[Any]:
    program = _touch(at / "program", 0o755, b"#!/bin/sh\necho run\nread wait\n")

    def execute(path: Path) -> Any:
        return outcome(lambda: subprocess.run([str(path)], capture_output=True, check=False, input=b"\n").stdout)

    yield execute(program)
    program.chmod(0o644)
    yield execute(program)
    binary = at / "binary"
    with open("/bin/cat", "rb") as file:
        _touch(binary, 0o755, file.read())
    with binary.open("r+b"):
        yield execute(binary)
    with subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin and running.stdout
        running.stdin.write(b"x")
        running.stdin.flush()
        yield running.stdout.read(1)
        yield _open(binary, os.O_WRONLY)
        yield outcome(os.truncate, binary, 0)
        yield outcome(os.rename, binary, at / "moved")
        yield outcome(os.unlink, at / "moved")


@_about("content")
def reading_and_writing_beyond_the_edges(at: Path) -> Iterator[Any]:
    fd = os.open(at / "file", os.O_RDWR | os.O_CREAT)
    yield os.pwrite(fd, b"x", 10_000), os.pread(fd, 5, 9_998), os.pread(fd, 5, 10_001), os.pread(fd, 5, 2**40)
    for offset in (-1, 2**63 - 1, 2**63 - 5):
        yield outcome(os.pwrite, fd, b"xxxxxxxxxx", offset)
        yield outcome(os.pread, fd, 10, offset)
    for position, whence in ((-1, 0), (5, 0), (-6, 1), (3, 2), (2**62, 0), (0, 99)):
        yield outcome(os.lseek, fd, position, whence)
    os.ftruncate(fd, 4)
    os.ftruncate(fd, 20)
    yield os.pread(fd, 100, 0)
    yield outcome(os.pwrite, fd, b"", 5), os.fstat(fd).st_size
    os.close(fd)
    write_only = os.open(at / "file", os.O_WRONLY | os.O_APPEND)
    yield outcome(os.read, write_only, 1)
    yield os.pwrite(write_only, b"end", 0), os.fstat(write_only).st_size  # Linux appends all the same
    os.close(write_only)
    directory = os.open(at, os.O_RDONLY)
    yield outcome(os.read, directory, 1), outcome(os.fsync, directory), outcome(os.fdatasync, directory)
    yield outcome(os.ftruncate, directory, 0)
    os.close(directory)


@_about("content")
def files_without_names(at: Path) -> Iterator[Any]:
    fd = os.open(at / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    os.unlink(at / "file")
    yield _look(fd), os.pread(fd, 10, 0)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    yield os.pwrite(again, b"C", 0), os.pread(fd, 10, 0)
    yield outcome(os.truncate, f"/proc/self/fd/{fd}", 3), _look(fd)
    yield outcome(os.fchown, fd, 3, 4), _look(fd)
    yield outcome(os.setxattr, fd, b"user.a", b"1"), outcome(os.getxattr, fd, b"user.a")
    yield outcome(os.link, f"/proc/self/fd/{fd}", at / "back", follow_symlinks=True)
    _touch(at / "file", content=b"new")
    yield os.pread(fd, 10, 0), (at / "file").read_bytes()
    os.close(again)
    os.close(fd)


@_about("content")
def mappings(at: Path) -> Iterator[Any]:
    with open(at / "file", "w+b") as file:
        file.truncate(20_000)
        shared = mmap.mmap(file.fileno(), 0)
        private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
        shared[5:9] = b"ABCD"
        yield os.pread(file.fileno(), 4, 5), private[5:9]
        os.pwrite(file.fileno(), b"written", 8190)
        yield shared[8190:8197]
        private[0:3] = b"own"
        yield os.pread(file.fileno(), 3, 0)
        # Another process sees what this one maps, and the other way round.
        code = (
            "import mmap, sys\n"
            "with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as mapped:\n"
            "    print(mapped[5:9])\n"
            "    mapped[12_000:12_005] = b'child'\n"
        )
        yield subprocess.run([sys.executable, "-c", code, str(at / "file")], capture_output=True, check=True).stdout
        yield shared[12_000:12_005], os.pread(file.fileno(), 5, 12_000)
        shared.flush()
        os.unlink(at / "file")
        shared[0:4] = b"gone"
        yield os.pread(file.fileno(), 4, 0)
        shared.close()
        private.close()
    read_only = os.open(_touch(at / "other", content=b"x" * 100), os.O_RDONLY)
    yield outcome(mmap.mmap, read_only, 100, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    yield outcome(lambda: mmap.mmap(read_only, 100, prot=mmap.PROT_READ)[:3])
    os.close(read_only)


@_about("content")
def locks(at: Path) -> Iterator[Any]:
    path = _touch(at / "file", content=b"x" * 100)
    one, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    reader = os.open(path, os.O_RDONLY)

    def lock(kind: int, start: int, length: int) -> bytes:
        return struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0)

    for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN):
        yield outcome(fcntl.flock, one, kind | fcntl.LOCK_NB)
        yield outcome(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield outcome(fcntl.flock, reader, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_UN)
        fcntl.flock(reader, fcntl.LOCK_UN)
    yield outcome(fcntl.fcntl, one, _OFD_SETLK, lock(fcntl.F_WRLCK, 0, 10)) and "set"
    yield outcome(fcntl.fcntl, other, _OFD_SETLK, lock(fcntl.F_WRLCK, 5, 10)) == "EAGAIN"
    yield outcome(fcntl.fcntl, other, _OFD_SETLK, lock(fcntl.F_RDLCK, 10, 10)) and "set"
    yield outcome(fcntl.fcntl, reader, _OFD_SETLK, lock(fcntl.F_WRLCK, 50, 1))  # not open for writing

    def try_lock(fd: int, start: int) -> int:
        return as_nobody(lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, start))

    path.chmod(0o666)
    fcntl.lockf(one, fcntl.LOCK_EX, 5, 60)
    for start in (55, 56, 60, 64, 65):
        yield start, try_lock(other, start)
    os.close(reader)  # POSIX: takes away all of this process's locks on the file
    yield try_lock(other, 60)
    os.close(one)
    os.close(other)


@_about("content")
def unknown_ioctls(at: Path) -> Iterator[Any]:
    fd = os.open(_touch(at / "file"), os.O_RDWR)
    for request in (0x1234, 0xABCD1234, 0x5413):
        yield outcome(fcntl.ioctl, fd, request, b"\0" * 16)
    os.close(fd)


@_about("permissions")
def what_somebody_else_may_do(at: Path) -> Iterator[Any]:
    for mode in (0o600, 0o644, 0o666, 0o755, 0o777):
        path = _touch(at / f"file-{mode:o}", mode, b"#!/bin/true\n")
        directory = at / f"directory-{mode:o}"
        directory.mkdir()
        _touch(directory / "inside", 0o666)
        directory.chmod(mode)
        yield [as_nobody(attempt) for attempt in _attempts(at, path, directory)]


def _attempts(at: Path, path: Path, directory: Path) -> tuple[Callable[[], object], ...]:
    return (
        lambda: path.read_bytes(),
        lambda: path.open("ab").close(),
        lambda: subprocess.run([str(path)], check=False),
        lambda: path.chmod(0o777),
        lambda: os.chown(path, NOBODY, -1),
        lambda: os.utime(path),
        lambda: os.utime(path, (1, 1)),
        lambda: os.truncate(path, 0),
        lambda: os.setxattr(path, b"user.a", b"1"),
        lambda: os.getxattr(path, b"user.b"),
        lambda: os.link(path, at / f"hard-{path.name}"),
        lambda: os.rename(path, at / f"moved-{path.name}"),
        lambda: os.unlink(path),
        lambda: os.listdir(directory),
        lambda: os.stat(directory / "inside"),
        lambda: os.mkdir(directory / "new"),
        lambda: os.rename(directory / "inside", directory / "outside"),
        lambda: os.unlink(directory / "outside"),
        lambda: os.rmdir(directory),
        lambda: os.open(path, os.O_RDONLY | os.O_NOATIME),
        lambda: os.mknod(at / f"device-{path.name}", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    )


@_about("permissions")
def setuid_and_setgid_bits(at: Path) -> Iterator[Any]:
    own = at / "own"
    for mode in (0o6777, 0o2745, 0o4755, 0o2755, 0o6711):
        for number, operation in enumerate(
            (
                lambda: os.close(os.open(own, os.O_WRONLY)),
                lambda: os.write(os.open(own, os.O_WRONLY), b"x"),
                lambda: os.truncate(own, 1),
                lambda: os.open(own, os.O_WRONLY | os.O_TRUNC),
                lambda: os.chown(own, -1, NOBODY),
                lambda: os.chown(own, -1, 4321),
                lambda: os.chown(own, NOBODY, -1),
                lambda: own.chmod(0o2755),
                lambda: os.rename(own, at / "moved"),
                lambda: os.utime(own),
            )
        ):
            for group in (NOBODY, 1234, 4321):
                if group == 1234 and not mode & stat.S_IXGRP:
                    continue  # the kernel's FUSE keeps the bit then (docs/posix.md)
                _touch(own)
                os.chown(own, NOBODY, group)
                own.chmod(mode)
                yield oct(mode), number, group, as_nobody(operation, groups=(4321,)), _look(own)
                own.unlink(missing_ok=True)


@_about("permissions")
def sticky_directories(at: Path) -> Iterator[Any]:
    sticky = at / "sticky"
    for owner in (0, NOBODY):
        for directory_owner in (0, NOBODY):
            sticky.mkdir()
            file, below = _touch(sticky / "file", 0o666), sticky / "below"
            below.mkdir(0o777)
            for path in (file, below):
                os.chown(path, owner, -1)
            os.chown(sticky, directory_owner, -1)
            sticky.chmod(0o1777)
            for operation in (
                lambda: os.rename(sticky / "file", sticky / "renamed"),
                lambda: os.rename(_touch(sticky / "mine"), sticky / "file"),
                lambda: os.rename(sticky / "below", sticky / "file2"),
                lambda: os.rmdir(sticky / "below"),
                lambda: os.unlink(sticky / "file"),
            ):
                yield owner, directory_owner, as_nobody(operation)
            yield sorted(os.listdir(sticky))
            subprocess.run(["rm", "-rf", str(sticky)], check=True)


@_about("permissions")
def groups_of_directories(at: Path) -> Iterator[Any]:
    shared = at / "shared"
    shared.mkdir()
    os.chown(shared, 0, 1234)
    shared.chmod(0o2777)

    def make() -> None:
        os.umask(0)
        os.close(os.open(shared / "file", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.close(os.open(shared / "file2", os.O_CREAT | os.O_WRONLY, 0o2765))
        os.mkdir(shared / "below", 0o777)
        os.mkfifo(shared / "fifo", 0o2777)
        os.mknod(shared / "node", stat.S_IFREG | 0o2777)
        os.symlink("target", shared / "link")
        (shared / "file2").chmod(0o2777)

    yield as_nobody(make)
    for path in sorted(shared.iterdir()):
        yield path.name, _look(path)
    yield as_nobody(lambda: os.chown(shared / "file", -1, 1234))
    yield as_nobody(lambda: os.chown(shared / "file", -1, NOBODY))
    yield _look(shared / "file")
