"""Names: odd, long, linked, removed, taken; and what a rename does to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fs.oracle import renameat2
from tests.fs.scenarios.scenario import about, attempt_open, look, outcome, touch

_NOREPLACE, _EXCHANGE, _WHITEOUT = 1, 2, 4  # linux/fs.h


@about("names")
def names_that_are_odd_or_too_long(at: Path) -> Iterator[Any]:
    root = os.fsencode(at)
    odd = (b"\n", b" ", b"-", b"...", b"a\\b", b"*", "é".encode(), b"", b"a\tb")
    for name in (b"n" * 255, b"n" * 256, b"\xff" * 255, *odd):
        yield outcome(os.mkdir, root + b"/" + name)
    yield sorted(os.listdir(root))
    for name in (b".", b"..", b"missing/../x", b"\n/", b"\n/.", b"\n/.."):
        yield outcome(os.rmdir, root + b"/" + name)
        yield outcome(os.mkdir, root + b"/" + name)


@about("names")
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


@about("names")
def symlinks_in_circles_and_to_nowhere(at: Path) -> Iterator[Any]:
    (at / "one").symlink_to("two")
    (at / "two").symlink_to("one")
    (at / "lost").symlink_to("missing")
    (at / "self").symlink_to(".")
    for name in ("one", "lost", "self", "one/x", "lost/x", "self/self/self/one"):
        yield outcome(os.listdir, at / name)
        yield attempt_open(at / name, os.O_RDONLY)
        yield attempt_open(at / name, os.O_RDONLY | os.O_NOFOLLOW)
        yield attempt_open(at / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        yield outcome(lambda name=name: os.stat(at / name) and None)
        yield outcome(os.chmod, at / name, 0o700)
        yield outcome(os.truncate, at / name, 1)
        yield outcome(os.rmdir, at / name)
    yield outcome(os.symlink, "", at / "empty")
    yield outcome(os.readlink, at)


@about("names")
def removing_what_cannot_be_removed(at: Path) -> Iterator[Any]:
    (at / "full" / "below").mkdir(parents=True)
    touch(at / "file")
    yield outcome(os.unlink, at / "full")
    yield outcome(os.rmdir, at / "full")
    yield outcome(os.rmdir, at / "file")
    yield outcome(os.unlink, at / "file" / "below")
    yield outcome(os.unlink, at / "missing")
    yield outcome(os.rmdir, at / "full" / "below" / "..")
    yield outcome(os.rmdir, f"{at}/full/below/.")
    yield outcome(os.unlink, f"{at}/file/")
    yield outcome(os.rmdir, f"{at}/full/below/")


@about("names")
def making_what_is_there(at: Path) -> Iterator[Any]:
    touch(at / "file")
    (at / "directory").mkdir()
    (at / "lost").symlink_to("missing")
    for name in ("file", "directory", "lost", "file/below"):
        yield outcome(os.mkdir, at / name)
        yield outcome(os.mkfifo, at / name)
        yield outcome(os.symlink, "target", at / name)
        yield outcome(os.link, at / "file", at / name)
        yield attempt_open(at / name, os.O_CREAT | os.O_EXCL | os.O_RDWR)


@about("rename")
def renames_of_everything_over_everything(at: Path) -> Iterator[Any]:
    def make(kind: str, path: Path) -> None:
        match kind:
            case "file":
                touch(path, content=b"content")
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
                yield flags, old, new, result, look(here / "old"), look(here / "new")


@about("rename")
def renames_that_make_no_sense(at: Path) -> Iterator[Any]:
    (at / "a" / "b").mkdir(parents=True)
    touch(at / "file")
    os.link(at / "file", at / "same")
    for old, new in (
        ("a", "a/b/c"), ("a", "a/b"), ("a/b", "a"), ("a/.", "c"), ("a", "file/x"), ("file", "a/"), ("file/", "g"),
        ("file", "same"), ("file", "file"), ("a", "a"), ("missing", "file"), ("a/..", "q"), ("file", "n" * 256),
    ):  # fmt: skip
        for flags in (0, _NOREPLACE, _EXCHANGE):
            paths = (os.fsencode(f"{at}/{old}"), os.fsencode(f"{at}/{new}"))
            yield old, new[:10], flags, outcome(renameat2, *paths, flags)
    yield sorted(os.listdir(at))
    yield look(at / "file")
