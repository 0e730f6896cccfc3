"""How fast the content of files is written and read through a mount, beside the same on a tmpfs.

The mount is a whole node's, with its worker; between two runs everything is hashed and quiet again, so that no run
pays for another.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.nodes import at_rest, in_thread, mounted, settled, until_room
from fuse_tier.bench.places import (
    BLOCK_BYTES,
    GIB,
    TRIAL_BYTES,
    fastest_tmpfs,
    huge_pages,
    warm,
    write_file,
)
from fuse_tier.localcluster import LocalNode

PASSTHROUGH_NEEDS_ROOT: Final = "passthrough takes CAP_SYS_ADMIN"
_WRITERS: Final = 4
_WRITE_RUNS: Final = 9  # of a fraction of a second each, in which whatever else wakes up on the machine shows
WARM_BYTES: Final = 7 * GIB  # what one run of ours and one of the tmpfs use together, at most


def _write_a_trial(path: Path) -> float:
    return write_file(path, TRIAL_BYTES, bytes(BLOCK_BYTES))


@asynccontextmanager
async def _beside_a_tmpfs(
    directory: Path, passthrough: str = "on", trial: Callable[[Path], float] = _write_a_trial, tier_gib: int = 5
) -> AsyncIterator[tuple[LocalNode, Path, Path]]:
    """A node, where its volume is mounted, and the tmpfs to compare with: the one on which ``trial`` is faster."""
    with fastest_tmpfs(directory, WARM_BYTES, trial) as plain:
        one: dict[str, Any] = {
            "ram_size": f"{tier_gib}GiB",
            "coordinator": False,
            "passthrough": passthrough,
            "keep": {"ram": 1},
        }
        async with mounted(directory / "c", ["a"], **one) as (cluster, mount):
            yield cluster["a"], mount, plain


async def _write(directory: Path, writers: int, passthrough: str) -> Figure:
    """New files of 1 GiB, each writer its own, in blocks of 1 MiB: from the first creating to the last close.

    Of names that nobody knows a predecessor of: what is reserved for others shows in ``fs.write.first``. Before each
    turn, ours and the tmpfs', the node is at rest, and as much memory was touched and freed just now: in the seconds
    until then the machine's host may have taken it back.
    """
    block = os.urandom(BLOCK_BYTES)
    async with _beside_a_tmpfs(directory, passthrough, tier_gib=3 + 2 * writers) as (node, mount, plain):
        names = (f"file-{_in_letters(number)}" for number in itertools.count())

        async def write(place: Path) -> float:
            paths = [place / next(names) for _ in range(writers)]
            await until_room(node, 2 * writers * GIB)  # with little of it the daemon has to see what is written
            await at_rest(node)
            await in_thread(warm, plain, writers * GIB)
            seconds = await in_thread(_write_at_once, paths, GIB, block)
            await settled(node, "ram")
            for path in paths:
                path.unlink()
            await settled(node, "ram")
            return writers * GIB / seconds / 1e9

        figure = await alternating(partial(write, mount), partial(write, plain), _WRITE_RUNS)
        return replace(figure, beside=huge_pages(plain))


def _in_letters(number: int) -> str:
    """Names that differ in numbers alone follow each other (fs/sizes.py)."""
    return str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def _write_at_once(paths: list[Path], size_bytes: int, block: bytes) -> float:
    threads = [threading.Thread(target=write_file, args=(path, size_bytes, block)) for path in paths]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


async def _write_next_checkpoint(directory: Path) -> Figure:
    """A checkpoint of new names, while the one before it is there and those before that are gone.

    Between two of them the node comes to rest, as it does between a job's.
    """
    block = os.urandom(BLOCK_BYTES)
    async with _beside_a_tmpfs(directory) as (node, mount, plain):
        steps = 0
        in_place = [plain / f"file{number}" for number in range(_WRITERS)]
        for path in in_place:
            write_file(path, GIB // _WRITERS, block)

        async def write_new() -> float:
            nonlocal steps
            steps += 1
            (mount / f"step{steps}").mkdir()
            seconds = 0.0
            for number in range(_WRITERS):
                path = mount / f"step{steps}" / f"file{number}"
                seconds += await in_thread(write_file, path, GIB // _WRITERS, block)
            await settled(node, "ram")
            await in_thread(partial(shutil.rmtree, mount / f"step{steps - 1}", ignore_errors=True))
            await settled(node, "ram")
            await until_room(node, 2 * GIB)
            await at_rest(node)
            return GIB / seconds / 1e9

        async def overwrite() -> float:
            seconds = 0.0
            for path in in_place:
                seconds += await in_thread(_overwrite, path, block)
            return GIB / seconds / 1e9

        await write_new()  # the first one, which nobody knew the size of
        return replace(await alternating(write_new, overwrite), beside=huge_pages(plain))


def _overwrite(path: Path, block: bytes) -> float:
    begun = time.perf_counter()
    with path.open("r+b", buffering=0) as file:
        for _ in range(os.fstat(file.fileno()).st_size // len(block)):
            file.write(block)
    return time.perf_counter() - begun


async def _read(directory: Path, *, mapped: bool) -> Figure:
    """A file of 1 GiB that is sealed, into a buffer of 1 MiB; the file was read before."""
    read_once = _read_mapped if mapped else _read_blocks

    def read_a_trial(path: Path) -> float:
        write_file(path, TRIAL_BYTES, bytes(BLOCK_BYTES))
        return statistics.median(read_once(path) for _ in range(3))

    async with _beside_a_tmpfs(directory, trial=read_a_trial) as (node, mount, plain):
        for place in (mount, plain):
            await in_thread(write_file, place / "file", GIB, os.urandom(BLOCK_BYTES))
        await settled(node, "ram")
        await at_rest(node)

        async def read(place: Path) -> float:
            seconds = await in_thread(read_once, place / "file")
            return GIB / seconds / 1e9

        return replace(await alternating(partial(read, mount), partial(read, plain)), beside=huge_pages(plain))


def _read_blocks(path: Path) -> float:
    buffer = bytearray(BLOCK_BYTES)
    begun = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begun


def _read_mapped(path: Path) -> float:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    begun = time.perf_counter()
    with (
        path.open("rb", buffering=0) as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as content,
    ):
        for start in range(0, len(content), BLOCK_BYTES):
            buffer[:] = content[start : start + BLOCK_BYTES]
    return time.perf_counter() - begun


ROWS: Final = (
    *(
        Row(
            f"fs.write.{name}",
            "GB/s",
            "the same on a tmpfs with huge pages",
            partial(_write, writers=writers, passthrough=passthrough),
            needs_root=PASSTHROUGH_NEEDS_ROOT if passthrough == "on" else "",
        )
        for name, writers, passthrough in (("seq1", 1, "on"), ("seq4", _WRITERS, "on"), ("plain", 1, "off"))
    ),
    Row(
        "fs.write.first",
        "GB/s",
        "overwriting as many bytes in place, on a tmpfs with huge pages",
        _write_next_checkpoint,
        PASSTHROUGH_NEEDS_ROOT,
    ),
    *(
        Row(
            f"fs.read.{name}",
            "GB/s",
            "the same on a tmpfs with huge pages",
            partial(_read, mapped=mapped),
            PASSTHROUGH_NEEDS_ROOT,
        )
        for name, mapped in (("seq", False), ("mmap", True))
    ),
)
