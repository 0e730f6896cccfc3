"""``python -m fuse_tier.bench.load DIRECTORY``: a job that notices what goes wrong, until its standard input ends.

It writes checkpoints, and has a file open all the while. It prints ``ready``, and at its end one line of JSON:
``{"operations", "errors", "longest"}``: how many, those that failed, in words, and the seconds that the slowest took.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_BLOCK_BYTES: Final = 1 << 20
_BLOCKS: Final = 8
_RECORD: Final = b"sixteen bytes..."


class Job:
    """Operations one after another, each timed, each outcome looked at."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._block = os.urandom(_BLOCK_BYTES)
        self._held = os.open(f"{directory}/held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.operations = 0
        self.errors: list[str] = []
        self.longest = 0.0

    def round(self, number: int) -> None:
        """A checkpoint: written, renamed, read back, listed and removed; and a record in the held file."""
        temporary, final = f"{self._directory}/step{number}.tmp", f"{self._directory}/step{number}"
        fd = self._do(os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if fd is None:
            return
        for _ in range(_BLOCKS):
            self._expect(self._do(os.write, fd, self._block) == _BLOCK_BYTES, f"a write to {temporary} was short")
        self._do(os.fsync, fd)
        self._do(os.close, fd)
        self._do(os.rename, temporary, final)
        fd = self._do(os.open, final, os.O_RDONLY | os.O_CLOEXEC)
        if fd is not None:
            for _ in range(_BLOCKS):
                self._expect(self._do(os.read, fd, _BLOCK_BYTES) == self._block, f"{final} is not as written")
            self._do(os.close, fd)
        self._expect(f"step{number}" in (self._do(os.listdir, self._directory) or ()), f"{final} is not listed")
        self._do(os.unlink, final)
        self._do(os.pwrite, self._held, _RECORD, number * len(_RECORD))
        found = self._do(os.pread, self._held, len(_RECORD), number * len(_RECORD))
        self._expect(found == _RECORD, f"record {number} of the held file is not as written")

    def _do(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        self.operations += 1
        begun = time.perf_counter()
        try:
            return operation(*arguments)
        except OSError as error:
            self.errors.append(str(error))
            return None
        finally:
            self.longest = max(self.longest, time.perf_counter() - begun)

    def _expect(self, fact: bool, otherwise: str) -> None:
        if not fact:
            self.errors.append(otherwise)


def main(directory: str) -> None:
    """Works until told to stop."""
    job = Job(directory)
    _say("ready")
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        job.round(number)
        number += 1
    _say(json.dumps({"operations": job.operations, "errors": job.errors, "longest": job.longest}))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
