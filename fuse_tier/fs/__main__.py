"""``python -m fuse_tier.fs``: the daemon of one mount, started by the node's supervisor.

Its parameters (spec.py) are one JSON object, on standard input or after ``--spec``. It prints one line:
``{"serving": true}`` or ``{"error": {"type", "message"}}``. Exit status: 0 after an orderly end, 1 otherwise.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog
import trio

from fuse_tier import logs
from fuse_tier.errors import FuseTierError
from fuse_tier.fs.daemon import Daemon, say
from fuse_tier.fs.spec import MountSpec

log = structlog.get_logger(__name__)


class _Lasting(io.TextIOBase):
    """Standard error that may go away: whoever reads our log may end, and the job's mount must not.

    It has a descriptor of its own: the usual one is where libfuse speaks (mounting.py).
    """

    def __init__(self) -> None:
        self._fd = os.dup(2)

    def write(self, text: str) -> int:
        """Writes what can be written, at once."""
        with suppress(OSError):
            os.write(self._fd, text.encode(errors="backslashreplace"))
        return len(text)

    def isatty(self) -> bool:
        """Whether a person is looking."""
        return os.isatty(self._fd)


def main() -> int:
    """Runs one daemon to its end; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuse_tier.fs", description="The daemon of one mount.")
    parser.add_argument("--spec", help="its parameters, a JSON object; read from standard input without it")
    given: str | None = parser.parse_args().spec
    sys.stderr = cast(TextIO, _Lasting())
    logs.configure("fs", "", sys.stderr)
    try:
        spec = MountSpec.parse(sys.stdin.read() if given is None else given)
        structlog.contextvars.bind_contextvars(identity=str(spec.identity))
        return 0 if trio.run(Daemon(spec).run) else 1
    except* (FuseTierError, OSError) as failures:
        failure = _first(failures)
        say({"error": {"type": type(failure).__name__, "message": str(failure)}})
    return 1


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


if __name__ == "__main__":
    sys.exit(main())
