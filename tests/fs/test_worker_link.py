"""What the daemon tells the worker and asks of it, over the real channel, with the real mount."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import TierUnavailable
from fuse_tier.wire.channel import Arguments
from tests.fs.jobs import counter, job, opened, write
from tests.fs.mounted import IDENTITY, Mounted
from tests.fs.worker import running_worker
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse

_KINDS = [
    *("rename", "unlink", "rmdir", "mkdir", "symlink", "link", "mkfifo"),
    *("chmod", "utime", "truncate", "setxattr", "fsyncdir", "write"),
]


def fsync_directory(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


async def test_the_daemon_introduces_itself_and_comes_back_after_the_workers_restart(mounted: Mounted) -> None:
    for _ in range(2):
        async with running_worker(mounted.place.socket) as worker:
            hello = await worker.heard("hello")
            assert hello["identity"] == str(IDENTITY)
            assert hello["mountpoint"] == str(mounted.path)
            assert hello["pid"] == mounted.daemon
            assert hello["passthrough"] is mounted.said["passthrough"]
        await job(write(mounted.path / "meanwhile", b"nobody listens"))


async def test_a_finished_file_is_announced_and_its_writer_is_known_before(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        before = await worker.ask("version")
        assert before["writers"] == []
        with await job(lambda: (mounted.path / "file").open("wb", buffering=0)) as file:
            await job(lambda: file.write(b"content"))
            inode = os.fstat(file.fileno()).st_ino
            during = await worker.ask("version")
            assert during["writers"] == [[inode, False]]
            assert during["counter"] > before["counter"]
            await job(lambda: os.fsync(file.fileno()))
            assert (await worker.ask("version"))["writers"] == [[inode, True]]
            await job(lambda: file.write(b"more"))
            synced = await worker.ask("version")
            # Where the kernel writes by itself nobody is asked: then the time of the last change tells.
            assert synced["writers"] == [[inode, mounted.said["passthrough"]]]
        await worker.heard("changed", lambda arguments: arguments["counter"] > synced["counter"])
        assert (await worker.ask("version"))["writers"] == []


async def test_memory_that_the_job_touched_first_is_told_and_none_that_was_reserved(mounted: Mounted) -> None:
    size = 4 << 20
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await job(write(mounted.path / "step-1", b"1" * size))
        told = size if mounted.said["passthrough"] else 0
        await worker.heard("changed", lambda arguments: arguments["unreserved"] == told)
        await job(write(mounted.path / "step-2", b"2" * size))
        before = await counter(worker)
        await job(lambda: (mounted.path / "step-2").chmod(0o600))
        later = await worker.heard("changed", lambda arguments: arguments["counter"] > before)
        assert later["unreserved"] == told


async def test_a_file_that_is_only_held_open_for_writing_counts_as_synced(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await job(write(mounted.path / "lock", b""))
        await worker.heard("changed")
        with await job(lambda: (mounted.path / "lock").open("r+b", buffering=0)) as file:
            assert (await worker.ask("version"))["writers"] == [[os.fstat(file.fileno()).st_ino, True]]


@pytest.mark.parametrize(
    "change",
    [
        lambda mnt: (mnt / "file").rename(mnt / "other"),
        lambda mnt: (mnt / "file").unlink(),
        lambda mnt: (mnt / "directory").rmdir(),
        lambda mnt: (mnt / "new").mkdir(),
        lambda mnt: (mnt / "new").symlink_to("file"),
        lambda mnt: (mnt / "new").hardlink_to(mnt / "file"),
        lambda mnt: os.mkfifo(mnt / "new"),
        lambda mnt: (mnt / "file").chmod(0o600),
        lambda mnt: os.utime(mnt / "file", ns=(1, 1)),
        lambda mnt: os.truncate(mnt / "file", 3),
        lambda mnt: os.setxattr(mnt / "file", "user.note", b"1"),
        fsync_directory,
        lambda mnt: (mnt / "file").write_bytes(b""),
    ],
    ids=_KINDS,
)
async def test_each_kind_of_change_is_counted_and_announced(mounted: Mounted, change: Callable[[Path], None]) -> None:
    (mounted.path / "directory").mkdir()
    (mounted.path / "file").write_bytes(b"content")
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("changed")
        before = await counter(worker)
        await job(lambda: change(mounted.path))
        told = await worker.heard("changed", lambda arguments: arguments["counter"] > before)
        assert told["counter"] <= await counter(worker)


async def test_looking_changes_nothing(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"content")
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("changed")
        before = await counter(worker)

        def look() -> None:
            (mounted.path / "file").read_bytes()
            list(mounted.path.iterdir())
            (mounted.path / "file").stat()
            os.listxattr(mounted.path / "file")

        await job(look)
        assert await counter(worker) == before


async def test_many_changes_make_few_announcements_and_the_last_one_is_told(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")

        def change() -> None:
            for number in range(300):
                os.mknod(mounted.path / str(number))

        await job(change)
        last = await counter(worker)
        await worker.heard("changed", lambda arguments: arguments["counter"] == last)
        assert len([name for name, _ in worker.calls if name == "changed"]) < 300


async def test_a_hold_keeps_changes_back_until_it_is_released_and_lets_the_rest_through(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"before")
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("changed")
        with await job(lambda: (mounted.path / "open").open("wb", buffering=0)) as held_open:
            held = await worker.ask("hold", seconds=2)
            async with trio.open_nursery() as nursery:
                done = []

                async def change(name: str) -> None:
                    await job((mounted.path / name).mkdir)
                    done.append(name)

                for name in ("one", "other"):
                    nursery.start_soon(change, name)
                assert await job((mounted.path / "file").read_bytes) == b"before"
                await job(lambda: held_open.write(b"goes on"))
                assert not (mounted.place.tree / "one").exists()
                assert await worker.ask("version") == held
                assert done == []
                await worker.ask("release")
        assert sorted(done) == ["one", "other"]


async def test_a_hold_lapses_by_itself(mounted: Mounted, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("hold.lapsed")
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await worker.ask("hold", seconds=0.5)
        with trio.fail_after(15):
            await job((mounted.path / "directory").mkdir)


async def test_a_hold_ends_with_the_worker_that_asked_for_it(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await worker.ask("hold", seconds=2)
    with trio.fail_after(15):
        await job(write(mounted.path / "file", b"no hold.lapsed in the log"))


async def test_an_unmount_says_goodbye(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await job(mounted.unmount)
        await worker.heard("goodbye")
        assert await job(mounted.wait) == 0


async def test_a_daemon_that_the_worker_refuses_keeps_serving_and_trying(
    mounted: Mounted, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("worker.refused")

    async def refuse(arguments: Arguments) -> None:
        raise TierUnavailable("still restoring")

    async with running_worker(mounted.place.socket) as worker:
        worker.answers["hello"] = refuse
        await worker.heard("hello")
        await job(write(mounted.path / "file", b"served"))
        del worker.answers["hello"]
        await worker.heard("changed")


async def test_a_worker_that_ends_before_it_has_answered_has_refused_nothing(mounted: Mounted) -> None:
    async def wait(arguments: Arguments) -> None:
        await trio.sleep_forever()

    async with running_worker(mounted.place.socket) as ending:
        ending.answers["hello"] = wait
        await ending.heard("hello")
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
