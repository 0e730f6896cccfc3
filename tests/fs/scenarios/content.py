"""Opening, reading, writing, mapping, locking and running."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fs.callers import as_nobody
from tests.fs.scenarios.scenario import about, attempt_open, look, outcome, touch

_OFD_SETLK = 37  # linux/fcntl.h: Python 3.11 lacks the name


@about("opening")
def flags_of_open(at: Path) -> Iterator[Any]:
    touch(at / "file", content=b"content")
    (at / "directory").mkdir()
    (at / "link").symlink_to("file")
    for name in ("file", "directory", "link", "missing", "file/x", "directory/"):
        for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3):
            for flags in (
                0, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_TRUNC, os.O_APPEND, os.O_EXCL, os.O_PATH,
                os.O_CREAT | os.O_DIRECTORY, os.O_SYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_DIRECT,
            ):  # fmt: skip
                yield name, access, flags, attempt_open(at / name, access | flags)
    yield look(at / "file")


@about("opening")
def sockets_and_pipes(at: Path) -> Iterator[Any]:
    os.mkfifo(at / "fifo")
    yield attempt_open(at / "fifo", os.O_WRONLY | os.O_NONBLOCK)
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
            yield outcome(server.bind, "socket"), look(at / "socket")
            yield outcome(client.connect, "socket")  # nobody listens
            server.listen()
            yield outcome(client.connect, "socket")
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                yield accepted.recv(100)
            yield attempt_open(at / "socket", os.O_RDWR)
            again = socket.socket(socket.AF_UNIX)
            with again:
                yield outcome(again.bind, "socket")
            os.rename("socket", "moved")
            with socket.socket(socket.AF_UNIX) as late:
                yield outcome(late.connect, "moved")
    finally:
        os.chdir(here)
    os.unlink(at / "moved")


@about("opening")
def programs(at: Path) -> Iterator[Any]:
    program = touch(at / "program", 0o755, b"#!/bin/sh\necho run\nread wait\n")

    def execute(path: Path) -> Any:
        return outcome(lambda: subprocess.run([str(path)], capture_output=True, check=False, input=b"\n").stdout)

    yield execute(program)
    program.chmod(0o644)
    yield execute(program)
    binary = at / "binary"
    with open("/bin/cat", "rb") as file:
        touch(binary, 0o755, file.read())
    with binary.open("r+b"):
        yield execute(binary)
    with subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin and running.stdout
        running.stdin.write(b"x")
        running.stdin.flush()
        yield running.stdout.read(1)
        yield attempt_open(binary, os.O_WRONLY)
        yield outcome(os.truncate, binary, 0)
        yield outcome(os.rename, binary, at / "moved")
        yield outcome(os.unlink, at / "moved")


@about("content")
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


@about("content")
def files_without_names(at: Path) -> Iterator[Any]:
    fd = os.open(at / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    os.unlink(at / "file")
    yield look(fd), os.pread(fd, 10, 0)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    yield os.pwrite(again, b"C", 0), os.pread(fd, 10, 0)
    yield outcome(os.truncate, f"/proc/self/fd/{fd}", 3), look(fd)
    yield outcome(os.fchown, fd, 3, 4), look(fd)
    yield outcome(os.setxattr, fd, b"user.a", b"1"), outcome(os.getxattr, fd, b"user.a")
    yield outcome(os.link, f"/proc/self/fd/{fd}", at / "back", follow_symlinks=True)
    touch(at / "file", content=b"new")
    yield os.pread(fd, 10, 0), (at / "file").read_bytes()
    os.close(again)
    os.close(fd)


@about("content")
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
    read_only = os.open(touch(at / "other", content=b"x" * 100), os.O_RDONLY)
    yield outcome(mmap.mmap, read_only, 100, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    yield outcome(lambda: mmap.mmap(read_only, 100, prot=mmap.PROT_READ)[:3])
    os.close(read_only)


@about("content")
def locks(at: Path) -> Iterator[Any]:
    path = touch(at / "file", content=b"x" * 100)
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


@about("content")
def unknown_ioctls(at: Path) -> Iterator[Any]:
    fd = os.open(touch(at / "file"), os.O_RDWR)
    for request in (0x1234, 0xABCD1234, 0x5413):
        yield outcome(fcntl.ioctl, fd, request, b"\0" * 16)
    os.close(fd)
