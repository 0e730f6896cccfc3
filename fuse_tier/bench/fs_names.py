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

from fuse_tier.bench.daemons import daemon_of, tree_of
from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.fs_content import PASSTHROUGH_NEEDS_ROOT
from fuse_tier.bench.nodes import in_thread, mounted, settled
from fuse_tier.bench.places import GIB, tmpfs, write_files
from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster import LocalNode

_CREATED: Final = 4_000
_LOOKED_UP: Final = 10_000
_SMALL_BYTES: Final = 4 << 10


@asynccontextmanager
async def _beside_aloopback(directory: Path, passthrough: str) -> AsyncIterator[tuple[LocalNode, Path, Path, Path]]:
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
    with subprocess.Popen(command, stdout=subprocess.PIPE) as serving:
        try:
            if serving.stdout is None or not serving.stdout.readline():
                raise FuseTierError(f"the loopback to compare with could not be mounted at {mountpoint}: see above")
            yield mountpoint
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=True)


async def _create(directory: Path, passthrough: str) -> Figure:
    """Files of 4 KiB, one after another: create, one write, close."""
    async with _beside_aloopback(directory, passthrough) as (node, mount, loopback, _):

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
    """Names that nobody has asked for since the mount was made: they are put where it takes them from."""
    async with _beside_aloopback(directory, "auto") as (node, mount, loopback, source):
        return await alternating(partial(_stat_new, mount, tree_of(node)), partial(_stat_new, loopback, source))


async def _stat_new(place: Path, source: Path) -> float:
    return _LOOKED_UP / await in_thread(_stat_all, await _new_names(place, source))


async def _stat_again(directory: Path) -> Figure:
    """How many requests reach the daemon when names that it was asked for are asked for again."""
    async with _beside_aloopback(directory, "auto") as (node, mount, _, _):
        paths = await _new_names(mount, tree_of(node))
        daemon = daemon_of(node)
        first = await in_thread(_replies_during, daemon, partial(_stat_all, paths))
        return Figure(await in_thread(_replies_during, daemon, partial(_stat_all, paths)), first)


async def _new_names(place: Path, source: Path) -> list[str]:
    name = f"names{len(os.listdir(source))}"
    await in_thread(write_files, source / name, _LOOKED_UP, _SMALL_BYTES)
    return [f"{place}/{name}/{number:05}" for number in range(_LOOKED_UP)]


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
