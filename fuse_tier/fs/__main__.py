"""``python -m fuse_tier.fs``: one mount, as the node's supervisor starts it: its keeper and its daemons.

Its parameters (spec.py) are one JSON object, on standard input or after ``--spec``. It prints one line:
``{"serving": true}`` or ``{"error": {"type", "message"}}``. Exit status: 0 after an orderly end, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys

import structlog
import trio

from fuse_tier import logs
from fuse_tier.errors import FuseTierError
from fuse_tier.fs.daemon import Daemon, say
from fuse_tier.fs.keeping import make, take_over
from fuse_tier.fs.mounting import MadeMount
from fuse_tier.fs.spec import MountSpec
from fuse_tier.fs.syscalls import raise_descriptor_limit
from fuse_tier.mount.keeper import FINAL_STATUS, Inheritance

log = structlog.get_logger(__name__)


def main() -> int:
    """Keeps one mount to its end; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuse_tier.fs", description="The keeper of one mount.")
    parser.add_argument("--spec", help="its parameters, a JSON object; read from standard input without it")
    given: str | None = parser.parse_args().spec
    logs.configure("fs", "", logs.Lasting(sys.stderr))  # type: ignore[arg-type]
    return keep(sys.stdin.read() if given is None else given)


def keep(given: str) -> int:
    """Keeps the mount of these parameters to its end, in a process of its own; gives the exit status."""
    try:
        spec = MountSpec.parse(given)
        structlog.contextvars.bind_contextvars(identity=str(spec.identity))
        raise_descriptor_limit()
        keeping = take_over(spec, _serve) if spec.take_over else make(spec, _serve)
    except (FuseTierError, OSError) as failure:
        say({"error": {"type": type(failure).__name__, "message": str(failure)}})
        return 1
    os.set_blocking(sys.stdout.fileno(), False)  # whoever reads it may have stopped
    return keeping.run()


def _serve(spec: MountSpec, made: MadeMount, inheritance: Inheritance) -> int:
    """A daemon's life, in a process of its own."""
    try:
        return 0 if trio.run(Daemon(spec, made, inheritance).run) else FINAL_STATUS
    except* (FuseTierError, OSError) as failures:
        log.error("daemon.failed", reason=str(_first(failures)))
    return 1


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


if __name__ == "__main__":
    sys.exit(main())
