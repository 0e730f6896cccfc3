"""A job that finds no room waits until the worker has made some, with passthrough and without."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.wire.channel import Arguments
from tests.fs.filling import small_tmpfs
from tests.fs.jobs import fails_with, job, opened
from tests.fs.mounted import PATIENCE_SECONDS, Mounted
from tests.fs.worker import SmallWorker, running_worker
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
ROOM = 16 * MIB
WRITER = """
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: os._exit(4))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
while True:
    os.write(fd, bytes(1 << 20))
"""


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A small tmpfs of its own, in the place of the large one that all tests share."""
    with small_tmpfs(tmp_path / "memory", ROOM) as path:
        yield path


class OldContent:
    """What a worker may give up, in the tmpfs beside the volume: when it is told to."""

    def __init__(self, tier: Path, size: int) -> None:
        self._tier = tier
        self._path = tier / "old"
        self._path.write_bytes(bytes(size))

    def free(self) -> int:
        found = os.statvfs(self._tier)
        return found.f_bavail * found.f_frsize

    def give_up(self) -> None:
        self._path.unlink()

    async def has_nothing_to_give(self, arguments: Arguments) -> dict[str, Any]:
        return {"free": self.free(), "coming": False}

    async def has_some_for_who_waits(self, arguments: Arguments) -> dict[str, Any]:
        """As if it had to be in the bucket first."""
        if arguments.get("waited") is not None:
            self.give_up()
        return {"free": self.free(), "coming": True}


def write_all(path: Path, content: bytes) -> list[int]:
    """How much each write of 1 MiB says that it has written."""
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        return [os.write(fd, content[start : start + MIB]) for start in range(0, len(content), MIB)]


def writing(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", WRITER, path])


def allocate(source: Path, fd: int) -> None:
    os.posix_fallocate(fd, 0, 4 * MIB)


def copy(source: Path, fd: int) -> None:
    with opened(source, os.O_RDONLY) as content:
        while os.fstat(fd).st_size < 4 * MIB:
            os.copy_file_range(content, fd, 4 * MIB)


async def serving(worker: SmallWorker, mounted: Mounted) -> None:
    """From then on the daemon asks."""
    await worker.heard("hello")
    await job(lambda: (mounted.path / "first").write_bytes(b"1"))
    await worker.heard("changed")


async def test_a_write_waits_for_what_is_still_on_its_way_to_the_bucket(mounted: Mounted) -> None:
    old = OldContent(mounted.place.base, 9 * MIB)
    content = os.urandom(12 * MIB)
    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
        worker.answers["make_room"] = old.has_some_for_who_waits
        assert await job(lambda: write_all(mounted.path / "file", content)) == [MIB] * 12
        await worker.heard("make_room", lambda arguments: arguments.get("waited") is not None)
        assert await job((mounted.path / "file").read_bytes) == content
        worker.calls.clear()
        await job(lambda: (mounted.path / "last").touch())
        told = await worker.heard("changed")
        assert told["unreserved"] < MIB, "its memory was touched by us"


@pytest.mark.parametrize("passthrough", ["on", "off"])
async def test_a_file_whose_room_comes_too_late_for_its_making_is_written_whole(
    start: Callable[..., Mounted], passthrough: str
) -> None:
    """As on a machine that has no time for the worker while the file is made."""
    mounted = start(passthrough=passthrough, expected_sizes=[["*.bin", 8 * MIB]])
    content = os.urandom(8 * MIB)
    old = OldContent(mounted.place.base, 10 * MIB)
    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
        worker.answers["make_room"] = old.has_some_for_who_waits
        assert await job(lambda: write_all(mounted.path / "one.bin", content)) == [MIB] * 8
        assert await job((mounted.path / "one.bin").read_bytes) == content


async def test_where_nothing_will_come_the_answer_is_exact(mounted: Mounted) -> None:
    old = OldContent(mounted.place.base, 8 * MIB)
    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
        worker.answers["make_room"] = old.has_nothing_to_give
        written: list[int] = []

        def fill() -> None:
            with opened(mounted.path / "file", os.O_WRONLY | os.O_CREAT) as fd:
                while True:
                    written.append(os.write(fd, bytes(MIB)))

        await fails_with(errno.ENOSPC, fill)
        assert (mounted.path / "file").stat().st_size == sum(written)
        assert old.free() == 0
        with opened(mounted.path / "file", os.O_WRONLY) as fd:
            await fails_with(errno.ENOSPC, lambda: os.posix_fallocate(fd, 0, 12 * MIB))


async def test_who_appends_waits_for_room_as_well(mounted: Mounted) -> None:
    """Also to a file that has all its pages already, as if it were to be overwritten."""
    begun, content = os.urandom(2 * MIB), os.urandom(6 * MIB)
    await job(lambda: (mounted.path / "file").write_bytes(begun))
    old = OldContent(mounted.place.base, 11 * MIB)
    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
        worker.answers["make_room"] = old.has_some_for_who_waits

        def append() -> list[int]:
            with opened(mounted.path / "file", os.O_WRONLY | os.O_APPEND) as fd:
                return [os.write(fd, content[start : start + MIB]) for start in range(0, len(content), MIB)]

        assert await job(append) == [MIB] * 6
        await worker.heard("make_room", lambda arguments: arguments.get("waited") is not None)
        assert await job((mounted.path / "file").read_bytes) == begun + content


@pytest.mark.parametrize("take", [allocate, copy])
async def test_who_allocates_or_copies_waits_as_well(mounted: Mounted, take: Callable[[Path, int], None]) -> None:
    await job(lambda: (mounted.path / "source").write_bytes(b"s" * (4 * MIB)))
    old = OldContent(mounted.place.base, 9 * MIB)
    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
        worker.answers["make_room"] = old.has_some_for_who_waits
        with opened(mounted.path / "file", os.O_RDWR | os.O_CREAT) as fd:
            await job(lambda: take(mounted.path / "source", fd))
            assert os.fstat(fd).st_size == 4 * MIB


async def test_who_waits_for_room_can_be_killed_and_interrupted(mounted: Mounted) -> None:
    old = OldContent(mounted.place.base, 15 * MIB)

    async def is_still_coming(arguments: Arguments) -> dict[str, Any]:
        return {"free": old.free(), "coming": True}

    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
        worker.answers["make_room"] = is_still_coming
        for number, outcome in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 4)):
            worker.calls.clear()
            writer = await job(lambda: writing(mounted.path / "file"))
            await worker.heard("make_room", lambda arguments: arguments.get("waited") is not None)
            writer.send_signal(number)
            assert await job(lambda writer=writer: writer.wait(PATIENCE_SECONDS)) == outcome  # type: ignore[misc]
        old.give_up()
        assert await job(lambda: write_all(mounted.path / "other", bytes(8 * MIB))) == [MIB] * 8


async def test_who_waits_for_room_goes_on_waiting_when_the_daemon_dies(
    mounted: Mounted, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    old, content, has_room = OldContent(mounted.place.base, 9 * MIB), os.urandom(12 * MIB), False

    async def is_still_coming(arguments: Arguments) -> dict[str, Any]:
        if has_room:
            return await old.has_some_for_who_waits(arguments)
        return {"free": old.free(), "coming": True}

    async with running_worker(mounted.place.socket) as worker, trio.open_nursery() as nursery:
        await serving(worker, mounted)
        worker.answers["make_room"] = is_still_coming
        written: list[int] = []

        async def write_meanwhile() -> None:
            written.extend(await job(lambda: write_all(mounted.path / "file", content)))

        nursery.start_soon(write_meanwhile)
        for _ in range(3):
            worker.calls.clear()
            await worker.heard("make_room", lambda arguments: arguments.get("waited") is not None)
            await job(mounted.kill_daemon)
        has_room = True
    assert written == [MIB] * 12
    assert (mounted.path / "file").read_bytes() == content


async def test_a_job_waits_for_another_worker_as_well(mounted: Mounted) -> None:
    old = OldContent(mounted.place.base, 8 * MIB)
    async with running_worker(mounted.place.socket) as worker:
        await serving(worker, mounted)
    async with trio.open_nursery() as nursery:
        written: list[int] = []

        async def write_meanwhile() -> None:
            written.extend(await job(lambda: write_all(mounted.path / "file", bytes(12 * MIB))))

        nursery.start_soon(write_meanwhile)
        while old.free():  # noqa: ASYNC110 - nothing announces it
            await trio.sleep(0.01)
        async with running_worker(mounted.place.socket) as another:
            another.answers["make_room"] = old.has_some_for_who_waits
            await another.heard("make_room", lambda arguments: arguments.get("waited") is not None)
    assert written == [MIB] * 12


def written_without_the_daemon(mounted: Mounted, fd: int, size: int) -> int:
    """The exit status of a job that writes to an open file while the daemon is stopped."""
    os.write(fd, b"1")  # before the first write the kernel asks for an attribute
    daemon = mounted.daemon
    os.kill(daemon, signal.SIGSTOP)
    try:
        command = [sys.executable, "-S", "-c", f"import os; os.write({fd}, bytes({size - 1}))"]
        return subprocess.Popen(command, pass_fds=[fd]).wait(PATIENCE_SECONDS)
    finally:
        os.kill(daemon, signal.SIGCONT)


def test_what_room_is_reserved_for_the_kernel_writes_by_itself(start: Callable[..., Mounted]) -> None:
    mounted = start(passthrough="on", expected_sizes=[["*.bin", 6 * MIB]])
    old = OldContent(mounted.place.base, 7 * MIB)
    with opened(mounted.path / "one.bin", os.O_WRONLY | os.O_CREAT) as fd:
        assert written_without_the_daemon(mounted, fd, 6 * MIB) == 0
    assert (mounted.path / "one.bin").stat().st_size == 6 * MIB
    old.give_up()


def test_what_is_appended_while_there_is_plenty_of_room_the_kernel_writes_by_itself(
    start: Callable[..., Mounted],
) -> None:
    mounted = start(passthrough="on")
    (mounted.path / "file").write_bytes(bytes(2 * MIB))
    with opened(mounted.path / "file", os.O_WRONLY | os.O_APPEND) as fd:
        assert written_without_the_daemon(mounted, fd, 2 * MIB) == 0
    assert (mounted.path / "file").stat().st_size == 4 * MIB
