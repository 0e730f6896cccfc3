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

import trio

from fuse_tier.bench.frame import Figure, Row, alternating
from fuse_tier.bench.nodes import at_rest, in_thread, mounted, settled, until_room
from fuse_tier.bench.places import (
    BLOCK_BYTES,
    GIB,
    TRIAL_BYTES,
    fastest_tmpfs,
    huge_pages,
    tmpfs,
    warm,
    write_file,
    write_files,
)
from fuse_tier.localcluster import LocalNode

PASSTHROUGH_NEEDS_ROOT: Final = "passthrough takes CAP_SYS_ADMIN"
_WRITERS: Final = 4
_WARM_BYTES: Final = 7 * GIB  # what one run of ours and one of the tmpfs use together
_ALONE_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 0.05


def _write_a_trial(path: Path) -> float:
    return write_file(path, TRIAL_BYTES, bytes(BLOCK_BYTES))


@asynccontextmanager
async def _beside_a_tmpfs(
    directory: Path, passthrough: str = "on", trial: Callable[[Path], float] = _write_a_trial
) -> AsyncIterator[tuple[LocalNode, Path, Path]]:
    """A node, where its volume is mounted, and the tmpfs to compare with: the one on which ``trial`` is faster."""
    with fastest_tmpfs(directory, _WARM_BYTES, trial) as plain:
        one: dict[str, Any] = {
            "ram_size": "5GiB",
            "coordinator": False,
            "passthrough": passthrough,
            "keep": {"ram": 1},
        }
        async with mounted(directory / "c", ["a"], **one) as (cluster, mount):
            yield cluster["a"], mount, plain


async def _write(directory: Path, writers: int, passthrough: str) -> Figure:
    """New files of 1 GiB together, each writer its own, in blocks of 1 MiB: from the creating to the last close.

    Of names that nobody knows a predecessor of: what is reserved for others shows in ``fs.write.first``.
    """
    block = os.urandom(BLOCK_BYTES)
    async with _beside_a_tmpfs(directory, passthrough) as (node, mount, plain):
        names = (f"file-{_in_letters(number)}" for number in itertools.count())

        async def write(place: Path) -> float:
            paths = [place / next(names) for _ in range(writers)]
            seconds = await in_thread(_write_at_once, paths, GIB // writers, block)
            await settled(node, "ram")
            for path in paths:
                path.unlink()
            await settled(node, "ram")
            return GIB / seconds / 1e9

        return replace(await alternating(partial(write, mount), partial(write, plain)), beside=huge_pages(plain))


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


async def _write_while_replicating(directory: Path) -> Figure:
    """A file that is held open is written again and again, while others are hashed and copied to a peer; and alone.

    The writer opens and closes nothing meanwhile, so it delays no snapshot, and is no part of one.
    """
    settings: dict[str, Any] = {
        "passthrough": "on",
        "keep": {"ram": 1},
        "encryptPeerTraffic": False,
        "settle": _SETTLE_SECONDS,
    }
    with tmpfs(directory, _WARM_BYTES) as plain:
        await in_thread(warm, plain, _WARM_BYTES - GIB)
    async with mounted(directory / "c", ["a", "b"], ram_size="5GiB", **settings) as (cluster, mount):
        node, step = cluster["a"], 0
        await in_thread(write_file, mount / "held", GIB // 4, os.urandom(BLOCK_BYTES))
        writer = _Rewriter(mount / "held")

        async def beside_copying() -> float:
            nonlocal step
            step += 1
            for each in cluster:
                await until_room(each, GIB + GIB // 2)
            await in_thread(write_files, mount / f"step{step}", 8, GIB // 8)
            async with _writing(writer):
                await trio.sleep(_SETTLE_SECONDS)
                begun = time.perf_counter()
                await settled(node, "peer")
                rate = writer.rate(begun)
            await in_thread(shutil.rmtree, mount / f"step{step}")
            await settled(node, "peer")
            return rate

        async def alone() -> float:
            async with _writing(writer):
                begun = time.perf_counter()
                await trio.sleep(_ALONE_SECONDS)
                return writer.rate(begun)

        try:
            return await alternating(beside_copying, alone)
        finally:
            writer.close()


class _Rewriter:
    """Writes a file in place, from its start to its end and anew, until it is told to stop."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._blocks = os.fstat(self._fd).st_size // BLOCK_BYTES
        self._written: list[float] = []  # when, for each block
        self.told = threading.Event()

    def write_until_told(self) -> None:
        """Blocks."""
        block = os.urandom(BLOCK_BYTES)
        self._written.clear()
        for number in itertools.cycle(range(self._blocks)):
            if self.told.is_set():
                return
            os.pwrite(self._fd, block, number * BLOCK_BYTES)
            self._written.append(time.perf_counter())

    def rate(self, since: float) -> float:
        """Since then, in GB/s."""
        ended = time.perf_counter()
        written = sum(since <= moment <= ended for moment in self._written)
        return written * BLOCK_BYTES / (ended - since) / 1e9

    def close(self) -> None:
        """After it has stopped."""
        os.close(self._fd)


@asynccontextmanager
async def _writing(writer: _Rewriter) -> AsyncIterator[None]:
    """It writes until the block is left, however that comes about."""
    writer.told.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, writer.write_until_told)
        try:
            yield
        finally:
            writer.told.set()


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
    Row(
        "fs.write.replicating",
        "GB/s",
        "the same while nothing is copied",
        _write_while_replicating,
        PASSTHROUGH_NEEDS_ROOT,
    ),
)
