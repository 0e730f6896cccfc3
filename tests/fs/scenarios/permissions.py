"""What somebody else may do, and which bits go when they do it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fs.callers import NOBODY, as_nobody
from tests.fs.scenarios.scenario import about, look, touch


@about("permissions")
def what_somebody_else_may_do(at: Path) -> Iterator[Any]:
    for mode in (0o600, 0o644, 0o666, 0o755, 0o777):
        path = touch(at / f"file-{mode:o}", mode, b"#!/bin/true\n")
        directory = at / f"directory-{mode:o}"
        directory.mkdir()
        touch(directory / "inside", 0o666)
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


@about("permissions")
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
                touch(own)
                os.chown(own, NOBODY, group)
                own.chmod(mode)
                yield oct(mode), number, group, as_nobody(operation, groups=(4321,)), look(own)
                own.unlink(missing_ok=True)


@about("permissions")
def sticky_directories(at: Path) -> Iterator[Any]:
    sticky = at / "sticky"
    for owner in (0, NOBODY):
        for directory_owner in (0, NOBODY):
            sticky.mkdir()
            file, below = touch(sticky / "file", 0o666), sticky / "below"
            below.mkdir(0o777)
            for path in (file, below):
                os.chown(path, owner, -1)
            os.chown(sticky, directory_owner, -1)
            sticky.chmod(0o1777)
            for operation in (
                lambda: os.rename(sticky / "file", sticky / "renamed"),
                lambda: os.rename(touch(sticky / "mine"), sticky / "file"),
                lambda: os.rename(sticky / "below", sticky / "file2"),
                lambda: os.rmdir(sticky / "below"),
                lambda: os.unlink(sticky / "file"),
            ):
                yield owner, directory_owner, as_nobody(operation)
            yield sorted(os.listdir(sticky))
            subprocess.run(["rm", "-rf", str(sticky)], check=True)


@about("permissions")
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
        yield path.name, look(path)
    yield as_nobody(lambda: os.chown(shared / "file", -1, 1234))
    yield as_nobody(lambda: os.chown(shared / "file", -1, NOBODY))
    yield look(shared / "file")
