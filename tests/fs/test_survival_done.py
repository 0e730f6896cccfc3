"""A daemon dies when it has done what it was asked, before it says so: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fs.mounted import Mounted, Place
from tests.fs.oracle import LONG_AGO_NS, Side
from tests.fs.side_by_side import memory_path, reference
from tests.harness.logs import ExpectedLogs

__all__ = ["memory_path", "reference"]

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_NOREPLACE, _EXCHANGE = 1, 2  # linux/fs.h


def _with_file(flags: int, *operations: Callable[[Side], Any]) -> Callable[[Side], Any]:
    def work(side: Side) -> list[Any]:
        side.open(b"file", flags, 0)
        return [operation(side) for operation in operations]

    return work


DONE: list[tuple[str, Callable[[Side], Any]]] = [
    ("MKDIR", lambda side: side.mkdir(b"new", 0o750)),
    ("MKNOD", lambda side: side.mknod(b"new", stat.S_IFIFO | 0o640)),
    ("SYMLINK", lambda side: side.symlink(b"leads/anywhere", b"new")),
    ("LINK", lambda side: side.link(b"file", b"directory/new")),
    ("UNLINK", lambda side: side.unlink(b"file")),
    ("RMDIR", lambda side: side.rmdir(b"empty")),
    ("RENAME", lambda side: side.rename(b"file", b"directory/inside", 0)),
    ("RENAME2", lambda side: side.rename(b"file", b"new", _NOREPLACE)),
    ("RENAME2", lambda side: side.rename(b"file", b"directory", _EXCHANGE)),
    ("CREATE", lambda side: side.open(b"new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)),
    ("OPEN", lambda side: side.open(b"file", os.O_RDWR | os.O_TRUNC, 0)),
    ("SETATTR", lambda side: side.truncate(b"file", 3)),
    ("SETATTR", lambda side: side.utime(b"file", LONG_AGO_NS)),
    ("SETXATTR", lambda side: side.setxattr(b"file", b"user.new", b"value", os.XATTR_CREATE)),
    ("REMOVEXATTR", lambda side: side.removexattr(b"file", b"user.old")),
    ("FALLOCATE", _with_file(os.O_RDWR, lambda side: side.fallocate(0, 0, 0, 50_000))),
    ("WRITE", _with_file(os.O_WRONLY, lambda side: side.append(0, b"once"), lambda side: side.append(0, b"twice"))),
    (
        "COPY_FILE_RANGE",
        _with_file(os.O_RDWR, lambda side: side.copy_range(0, 0, 0, 10, 5), lambda side: side.fstat(0)),
    ),
    ("OPENDIR", lambda side: side.listdir(b"directory")),
    ("RELEASE", _with_file(os.O_RDWR, lambda side: side.close(0), lambda side: side.unlink(b"file"))),
]


def _prepare(root: Path) -> Side:
    side = Side(root)
    side.mkdir(b"directory", 0o755)
    side.mkdir(b"empty", 0o755)
    (root / "directory" / "inside").write_bytes(b"inside")
    (root / "file").write_bytes(b"content")
    side.setxattr(b"file", b"user.old", b"value", 0)
    return side


@pytest.mark.parametrize(("request_", "work"), [pytest.param(*case, id=case[0].lower()) for case in DONE])
def test_what_was_done_for_a_request_is_done_once_whether_or_not_it_was_answered(
    start: Callable[..., Mounted],
    place: Place,
    reference: Path,
    request_: str,
    work: Callable[[Side], Any],
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow("daemon.ended")
    (reference / "tree").mkdir()
    theirs = _prepare(reference / "tree")
    _prepare(place.tree)
    ours = Side(start(program=("tests.fs.dying", "", request_), passthrough="off").path)
    try:
        assert ours.try_(lambda side: work(side)) == theirs.try_(lambda side: work(side))
        assert ours.walk() == theirs.walk()
    finally:
        for side in (ours, theirs):
            side.close_all()
    assert place.log.read_text().count("daemon.ended") == 1, "the daemon did not die of this request"
