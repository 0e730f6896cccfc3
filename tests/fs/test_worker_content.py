"""Sealed content stays what it was; content that is elsewhere is fetched when it is opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.errors import Damaged
from fuse_tier.wire.channel import Arguments
from tests.fs.jobs import fails_with, job, opened, write
from tests.fs.mounted import Mounted
from tests.fs.worker import running_worker
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse


def write_in_the_middle(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"X", 3)


def shorten(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 1)


def truncate_and_read(path: Path) -> None:
    with opened(path, os.O_RDONLY | os.O_TRUNC) as fd:
        assert os.read(fd, 1) == b""


async def test_sealed_content_survives_each_way_of_changing_the_file(mounted: Mounted) -> None:
    changes: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(b"new"),
        lambda path: path.open("ab").close(),
        lambda path: os.truncate(path, 2),
        truncate_and_read,
        write_in_the_middle,
        shorten,
    ]
    for number, change in enumerate(changes):
        path, content = mounted.path / str(number), b"content %d" % number
        path.write_bytes(content)
        blob = mounted.place.seal(path.name)
        assert blob
        assert os.stat(mounted.place.layout.blob(blob)).st_ino == path.stat().st_ino
        assert path.stat().st_nlink == 1
        await job(lambda change=change, path=path: change(path))  # type: ignore[misc]
        assert mounted.place.blob_content(blob) == content
        assert path.stat().st_nlink == 1
        assert mounted.place.pins.known_blob(path.stat().st_ino) is None


async def test_reading_and_renaming_a_sealed_file_copies_nothing(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"content")
    blob = mounted.place.seal("file")
    assert blob
    (mounted.path / "file").chmod(0o600)
    (mounted.path / "file").rename(mounted.path / "other")
    assert (mounted.path / "other").read_bytes() == b"content"
    assert os.stat(mounted.place.layout.blob(blob)).st_ino == (mounted.path / "other").stat().st_ino


async def test_a_hard_linked_sealed_file_shows_its_own_links_only(mounted: Mounted) -> None:
    (mounted.path / "a").write_bytes(b"content")
    (mounted.path / "b").hardlink_to(mounted.path / "a")
    assert mounted.place.seal("a")
    os.utime(mounted.path / "a")  # the kernel asks again
    assert (mounted.place.tree / "a").stat().st_nlink == 3
    assert (mounted.path / "a").stat().st_nlink == 2


def placeholder(mounted: Mounted, name: str, size: int) -> int:
    """A file whose content is elsewhere, as a restore leaves it."""
    path = mounted.place.tree / name
    path.touch()
    os.truncate(path, size)
    inode = path.stat().st_ino
    marker = os.path.join(mounted.place.volume.remote, str(inode))
    os.link(path, f"{marker}.file")
    os.symlink("../blobs/00/somewhere", marker)
    return inode


async def test_content_that_is_elsewhere_is_fetched_once_before_the_file_is_opened(mounted: Mounted) -> None:
    inode = placeholder(mounted, "file", 7)
    asked = trio.Event()

    async def fetch(arguments: Arguments) -> dict[str, Any]:
        asked.set()
        (mounted.place.tree / "file").write_bytes(b"fetched")
        os.unlink(os.path.join(mounted.place.volume.remote, str(arguments["inode"])))
        return {}

    async with running_worker(mounted.place.socket) as worker:
        worker.answers["materialize"] = fetch
        assert await job(lambda: (mounted.path / "file").stat().st_size) == 7
        assert not asked.is_set()
        read = []

        async def open_and_read() -> None:
            read.append(await job((mounted.path / "file").read_bytes))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(open_and_read)
        assert read == [b"fetched"] * 3
        assert [call for call in worker.calls if call[0] == "materialize"] == [("materialize", {"inode": inode})]


async def test_a_fetch_that_fails_fails_that_open_alone(mounted: Mounted, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("content.not_fetched")
    placeholder(mounted, "bad", 7)
    (mounted.path / "good").write_bytes(b"good")

    async def fail(arguments: Arguments) -> None:
        raise Damaged("no source has it any more")

    async with running_worker(mounted.place.socket) as worker:
        worker.answers["materialize"] = fail
        await fails_with(errno.EIO, (mounted.path / "bad").read_bytes)
        await fails_with(errno.EIO, lambda: (mounted.path / "bad").open("r+b"))
        await fails_with(errno.EIO, lambda: os.truncate(mounted.path / "bad", 3))
        assert await job((mounted.path / "good").read_bytes) == b"good"
        assert (await worker.ask("version"))["writers"] == []


async def test_content_that_is_about_to_be_replaced_is_not_fetched(mounted: Mounted) -> None:
    inode = placeholder(mounted, "file", 7)
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await job(write(mounted.path / "file", b"new"))
        assert await job((mounted.path / "file").read_bytes) == b"new"
        assert not os.path.lexists(os.path.join(mounted.place.volume.remote, str(inode)))
        assert "materialize" not in [name for name, _ in worker.calls]


async def test_a_fetch_survives_the_workers_restart(mounted: Mounted) -> None:
    placeholder(mounted, "file", 7)

    async def never(arguments: Arguments) -> None:
        await trio.sleep_forever()

    async def fetch(arguments: Arguments) -> dict[str, Any]:
        (mounted.place.tree / "file").write_bytes(b"fetched")
        os.unlink(os.path.join(mounted.place.volume.remote, str(arguments["inode"])))
        return {}

    read = trio.Event()
    async with trio.open_nursery() as nursery:

        async def open_and_read() -> None:
            assert await job((mounted.path / "file").read_bytes) == b"fetched"
            read.set()

        async with running_worker(mounted.place.socket) as worker:
            worker.answers["materialize"] = never
            nursery.start_soon(open_and_read)
            await worker.heard("materialize")
        async with running_worker(mounted.place.socket) as worker:
            worker.answers["materialize"] = fetch
            with trio.fail_after(15):
                await read.wait()
