"""What a job notices when the daemon of its mount is killed, and how soon a large volume is there again."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from fuse_tier.bench.daemons import daemon_of, tree_of
from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.bench.fs_room import make_many
from fuse_tier.bench.nodes import IDENTITY, in_thread, mounted
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalNode

_KILLS: Final = 20
_SHORTEST_SECONDS: Final = 0.1
_LONGEST_SECONDS: Final = 0.6
_STALL_LIMIT_SECONDS: Final = 0.3
_REMOUNT_LIMIT_SECONDS: Final = 1.0
_SEED: Final = 1
_POLL_SECONDS: Final = 0.005
_PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Told:
    """What the job (load.py) said at its end."""

    operations: int
    errors: list[str]
    longest: float


async def _stall(directory: Path) -> Figure:
    """The longest that one operation of a busy job took."""
    return Figure((await _kill_under_load(directory)).longest, _STALL_LIMIT_SECONDS)


async def _errors(directory: Path) -> Figure:
    """Operations of the job that failed, or whose outcome was wrong."""
    told = await _kill_under_load(directory)
    return Figure(len(told.errors), told.operations)


async def _kill_under_load(directory: Path) -> _Told:
    moments = random.Random(_SEED)
    settings: dict[str, Any] = {"ram_size": "2GiB", "coordinator": False, "keep": {"ram": 1}}
    async with mounted(directory / "c", ["a"], **settings) as (cluster, mount):
        with _job(mount) as job:
            await in_thread(job.readline)
            killed = 0
            for _ in range(_KILLS):
                await trio.sleep(moments.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS))
                killed = await _kill_daemon(cluster["a"], killed)
            await trio.sleep(_LONGEST_SECONDS)
            job.stop()
            return _Told(**json.loads(await in_thread(job.readline)))


class _Job:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def readline(self) -> bytes:
        """What it says next. Raises FuseTierError when it has ended without a word."""
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise FuseTierError("the job that the daemon is killed under has failed: see above")
        return line

    def stop(self) -> None:
        """Lets it come to its end."""
        if self._process.stdin:
            self._process.stdin.close()


@contextmanager
def _job(mount: Path) -> Iterator[_Job]:
    command = [sys.executable, "-m", "fuse_tier.bench.load", str(mount)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield _Job(process)


async def _kill_daemon(node: LocalNode, last: int) -> int:
    """Kills the daemon that is there, or comes, after the one that was killed last."""
    with trio.fail_after(_PATIENCE_SECONDS):
        while True:
            try:
                if (daemon := daemon_of(node)) != last:
                    os.kill(daemon, signal.SIGKILL)
                    return daemon
            except (FuseTierError, ProcessLookupError):
                pass  # between two
            await trio.sleep(_POLL_SECONDS)


async def _remount(directory: Path) -> Figure:
    """From the request to mount a volume that is in RAM until the mount has been listed."""
    async with mounted(directory / "c", ["a"], ram_size="2GiB", coordinator=False) as (cluster, mount):
        node = cluster["a"]
        await in_thread(make_many, tree_of(node))
        (mount / "changed").touch()
        await node.wait(IDENTITY, "ram", _PATIENCE_SECONDS)
        seconds = []
        for _ in range(RUNS + 1):
            await node.unmount(mount)
            begun = time.perf_counter()
            await node.mount(IDENTITY, mount)
            await in_thread(os.listdir, mount)
            seconds.append(time.perf_counter() - begun)
        return Figure(statistics.median(seconds[1:]), _REMOUNT_LIMIT_SECONDS)


ROWS: Final = (
    Row("fs.crash.stall", "s", "limit", _stall),
    Row("fs.crash.errors", "operations", "operations", _errors),
    Row("fs.remount", "s", "limit", _remount),
)
