"""How fast names are made and found through a mount, beside a minimal filesystem of pyfuse3 (loopback.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from fuse_tier.bench.daemons import daemon_of, tree_of
from fuse_tier.bench.frame import RUNS, Figure, Row, alternating
from fuse_tier.bench.fs_content import PASSTHROUGH_NEEDS_ROOT
from fuse_tier.bench.nodes import in_thread, mounted, settled
from fuse_tier.bench.places import GIB, tmpfs, write_files
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalNode

_CREATED: Final = 4_000
_LOOKED_UP: Final = 10_000
_SMALL_BYTES: Final = 4 << 10
_NAMED_BYTES: Final = 64
_DIRECTORY: Final = "names"
_ANNOUNCED_SECONDS: Final = 0.2


@asynccontextmanager
async def _beside_a_loopback(directory: Path, passthrough: str) -> AsyncIterator[tuple[LocalNode, Path, Path, Path]]:
    """A node, where its volume is mounted, where the loopback is, and of what."""
    with tmpfs(directory, GIB) as source, loopback(source, directory / "loopback") as beside:
        one: dict[str, Any] = {
            "ram_size": "1GiB",
            "coordinator": False,
            "passthrough": passthrough,
            "keep": {"ram": 1},
        }
        async with mounted(directory / "c", ["a"], **one) as (cluster, mount):
            yield cluster["a"], mount, beside, source


@contextmanager
def loopback(source: Path, mountpoint: Path) -> Iterator[Path]:
    """Mounts the filesystem to compare with, until the block is left."""
    mountpoint.mkdir()
    command = [sys.executable, "-m", "fuse_tier.bench.loopback", str(source), str(mountpoint)]
    # Like a node in a session of its own: sessions share processors, and who asks would share one with who answers.
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as serving:
        try:
            if serving.stdout is None or not serving.stdout.readline():
                raise FuseTierError(f"the loopback to compare with could not be mounted at {mountpoint}: see above")
            yield mountpoint
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=True)


async def _create(directory: Path, passthrough: str) -> Figure:
    """Files of 4 KiB, one after another: create, one write, close."""
    async with _beside_a_loopback(directory, passthrough) as (node, mount, loopback, _):

        async def create(place: Path) -> float:
            seconds = await in_thread(_create_files, place / "files")
            await settled(node, "ram")
            await in_thread(shutil.rmtree, place / "files")
            await settled(node, "ram")
            return _CREATED / seconds

        return await alternating(partial(create, mount), partial(create, loopback))


def _create_files(directory: Path) -> float:
    directory.mkdir()
    content = os.urandom(_SMALL_BYTES)
    paths = [f"{directory}/{number:05}" for number in range(_CREATED)]
    begun = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.write(fd, content)
        os.close(fd)
    return time.perf_counter() - begun


async def _stat_cold(directory: Path) -> Figure:
    """Names that nobody has asked for since the mount was made, of files that are sealed."""
    async with _beside_a_loopback(directory, "auto") as (node, mount, beside, source):
        await _make_names(node, mount, RUNS + 1)
        await in_thread(_write_names, source, RUNS + 1)
        ours, theirs = (
            [[f"{place}/{_DIRECTORY}{run}/{number:05}" for number in range(_LOOKED_UP)] for run in range(RUNS + 1)]
            for place in (mount, beside)
        )

        async def stat_next(names: list[list[str]]) -> float:
            return _LOOKED_UP / await in_thread(_stat_all, names.pop())

        return await alternating(partial(stat_next, ours), partial(stat_next, theirs))


async def _stat_again(directory: Path) -> Figure:
    """How many requests reach the daemon when names that it was asked for are asked for again."""
    async with _beside_a_loopback(directory, "auto") as (node, mount, _, _):
        await _make_names(node, mount, 1)
        paths = [f"{mount}/{_DIRECTORY}0/{number:05}" for number in range(_LOOKED_UP)]
        daemon = daemon_of(node)
        first = await in_thread(_replies_during, daemon, partial(_stat_all, paths))
        return Figure(await in_thread(_replies_during, daemon, partial(_stat_all, paths)), first)


async def _make_names(node: LocalNode, mount: Path, directories: int) -> None:
    """Where the mount takes them from, so that the kernel has not heard of them; and waits until they are sealed."""
    await in_thread(_write_names, tree_of(node), directories)
    (mount / "changed").touch()  # what is made behind a mount's back, nobody would look at
    await settled(node, "ram")
    await trio.sleep(_ANNOUNCED_SECONDS)  # by then the worker has heard of that file, and looks once more
    await settled(node, "ram")


def _write_names(place: Path, directories: int) -> None:
    for number in range(directories):
        write_files(place / f"{_DIRECTORY}{number}", _LOOKED_UP, _NAMED_BYTES)


def _stat_all(paths: list[str]) -> float:
    begun = time.perf_counter()
    for path in paths:
        os.stat(path)
    return time.perf_counter() - begun


def _replies_during(daemon: int, work: Callable[[], object]) -> int:
    """How often the daemon has written meanwhile: it writes replies, and next to nothing else."""

    def written() -> int:
        lines = Path(f"/proc/{daemon}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("syscw:"))

    before = written()
    work()
    return written() - before


_LOOPBACK: Final = "a minimal pyfuse3 filesystem"
ROWS: Final = (
    Row("fs.create.passthrough", "files/s", _LOOPBACK, partial(_create, passthrough="on"), PASSTHROUGH_NEEDS_ROOT),
    Row("fs.create.plain", "files/s", _LOOPBACK, partial(_create, passthrough="off")),
    Row("fs.stat", "names/s", _LOOPBACK, _stat_cold),
    Row("fs.stat.again", "requests", "the first time", _stat_again),
)
