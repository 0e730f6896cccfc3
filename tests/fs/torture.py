"""``python -m tests.fs.torture DIRECTORY``: a job that notices everything until its input ends, and a round more.

It prints ``{"ready": true}`` once, and at its end ``{"rounds", "operations", "errors", "longest", "slowest"}``: what
went wrong, in words, and the longest that one operation took, in seconds, and its name.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_EXCHANGE = 2  # RENAME_EXCHANGE
_LISTED = 3_000


class Job:
    """Operations one after another, each timed, each outcome checked."""

    def __init__(self, directory: str, large_bytes: int) -> None:
        self._at = directory
        self._large = bytes(os.urandom(1 << 16)) * (large_bytes >> 16)
        self.errors: list[str] = []
        self.operations = 0
        self.longest = (0.0, "")
        self._doing: list[str] = []

    def do(self, name: str, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Does one thing, and keeps its time and its failure."""
        self.operations += 1
        started = time.monotonic()
        try:
            return action(*arguments, **named)
        except OSError as error:
            self.errors.append(f"{name}: {error}")
            return None
        finally:
            self.longest = max(self.longest, (time.monotonic() - started, name))

    def check(self, fact: bool, what: str) -> None:
        """Notes what is not so."""
        if not fact:
            self.errors.append(f"wrong: {what}")

    def path(self, name: str) -> str:
        return f"{self._at}/{name}"

    def prepare(self) -> None:
        """What is there all the while: a file held open, one without a name, a lock, and a long directory."""
        self.held = os.open(self.path("held"), os.O_RDWR | os.O_CREAT)
        self.nameless = os.open(self.path("nameless"), os.O_RDWR | os.O_CREAT)
        os.unlink(self.path("nameless"))
        os.write(self.nameless, b"still here")
        self.locked = os.open(self.path("locked"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.locked, fcntl.LOCK_EX)
        os.mkdir(self.path("long"))
        for number in range(_LISTED):
            os.close(os.open(self.path(f"long/entry-{number:06}"), os.O_WRONLY | os.O_CREAT))
        os.mkdir(self.path("gone"))
        self.gone = os.open(self.path("gone"), os.O_RDONLY)
        os.rmdir(self.path("gone"))
        for name in ("one", "other"):
            with open(self.path(name), "w") as file:
                file.write(name)

    def round(self, number: int) -> None:
        """One of everything."""
        self._checkpoint(number)
        self._held(number)
        self._names(number)
        self._listing()

    def _checkpoint(self, number: int) -> None:
        name, final = self.path(f"step-{number}.tmp"), self.path(f"step-{number}")
        fd = self.do("create", os.open, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        if fd is None:
            return
        content = memoryview(self._large)
        for start in range(0, len(content), 1 << 20):
            written = self.do("write", os.write, fd, content[start : start + (1 << 20)])
            self.check(written == len(content[start : start + (1 << 20)]), "a short write")
        self.do("fsync", os.fsync, fd)
        self.do("close", os.close, fd)
        self.do("rename", os.rename, name, final)
        fd = self.do("open", os.open, final, os.O_RDONLY)
        if fd is not None:
            found = b"".join(iter(lambda: self.do("read", os.read, fd, 1 << 20) or b"", b""))
            self.check(found == self._large, f"content of {final} ({len(found)} bytes)")
            self.do("close", os.close, fd)
        self.do("unlink", os.unlink, final)
        self.check(not self.do("exists", os.path.exists, final), f"{final} is still there")

    def _held(self, number: int) -> None:
        line = f"{number:016}".encode()
        self.do("pwrite held", os.pwrite, self.held, line, 16 * number)
        self.check(self.do("pread held", os.pread, self.held, 16, 16 * number) == line, "the held file")
        self.check(self.do("fstat held", os.fstat, self.held).st_size == 16 * (number + 1), "the held file's size")
        self.check(self.do("pread nameless", os.pread, self.nameless, 20, 0) == b"still here", "the nameless file")
        self.check(self.do("fstat nameless", os.fstat, self.nameless).st_nlink == 0, "links of the nameless file")
        self.do("fchmod nameless", os.fchmod, self.nameless, 0o600 + number % 8)
        self.do("fstat gone", os.fstat, self.gone)
        other = self.do("open locked", os.open, self.path("locked"), os.O_RDWR)
        if other is not None:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.check(False, "the lock is lost")
            except BlockingIOError:
                self.operations += 1
            self.do("close", os.close, other)

    def _names(self, number: int) -> None:
        directory, inner = self.path(f"directory-{number}"), self.path(f"directory-{number}/file")
        self.do("mkdir", os.mkdir, directory)
        self.do("symlink", os.symlink, "target", self.path(f"directory-{number}/link"))
        self.do("mknod", os.mkfifo, self.path(f"directory-{number}/fifo"))
        self.do("create", lambda: os.close(os.open(inner, os.O_WRONLY | os.O_CREAT | os.O_EXCL)))
        self.do("link", os.link, inner, self.path(f"directory-{number}/second"))
        self.check(self.do("stat", os.stat, inner).st_nlink == 2, "links")
        self.do("setxattr", os.setxattr, inner, "user.mine", b"1", os.XATTR_CREATE)
        self.do("removexattr", os.removexattr, inner, "user.mine")
        self.do("truncate", os.truncate, inner, 1000)
        self.check(self.do("stat", os.stat, inner).st_size == 1000, "the truncated size")
        for name in ("second", "link", "fifo", "file"):
            self.do("unlink", os.unlink, f"{directory}/{name}")
        self.do("rmdir", os.rmdir, directory)
        self.do("exchange", self._exchange)
        first, second = ("one", "other") if number % 2 else ("other", "one")
        with open(self.path("one")) as file:
            self.check(file.read() == first, "an exchange was lost, or done twice")
        with open(self.path("other")) as file:
            self.check(file.read() == second, "an exchange was lost, or done twice")

    def _exchange(self) -> None:
        at = -100  # AT_FDCWD
        one, other = self.path("one").encode(), self.path("other").encode()
        if _libc.renameat2(at, one, at, other, _EXCHANGE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _listing(self) -> None:
        names = []
        entries = self.do("opendir", os.scandir, self.path("long"))
        while (entry := self.do("readdir", next, entries, None)) is not None:
            names.append(entry.name)
        self.check(len(names) == len(set(names)) == _LISTED, f"a listing of {len(set(names))} names")


def main() -> None:
    """Runs the job."""
    directory, large_bytes = sys.argv[1], int(sys.argv[2])
    job = Job(directory, large_bytes)
    job.prepare()
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201
    rounds = 0
    for rounds in itertools.count(1):
        is_last = bool(select.select([sys.stdin], [], [], 0)[0])
        job.round(rounds - 1)  # also after the end was asked for: what the last blow broke shows
        if is_last:
            break
    seconds, slowest = job.longest
    print(  # noqa: T201
        json.dumps(
            {
                "rounds": rounds,
                "operations": job.operations,
                "errors": job.errors[:20],
                "longest": round(seconds, 3),
                "slowest": slowest,
            }
        )
    )


if __name__ == "__main__":
    main()
