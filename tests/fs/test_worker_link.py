"""What the daemon tells the worker and asks of it, over the real channel, with the real mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from fuse_tier.errors import Damaged, DeadlineExceeded, TierUnavailable
from fuse_tier.wire.channel import Arguments
from tests.fs.mounted import IDENTITY, Mounted
from tests.fs.worker import SmallWorker, running_worker
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse

T = TypeVar("T")
_KINDS = [
    *("rename", "unlink", "rmdir", "mkdir", "symlink", "link", "mkfifo"),
    *("chmod", "utime", "truncate", "setxattr", "fsyncdir", "write"),
]


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def write_in_the_middle(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"X", 3)


def shorten(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 1)


def truncate_and_read(path: Path) -> None:
    with opened(path, os.O_RDONLY | os.O_TRUNC) as fd:
        assert os.read(fd, 1) == b""


async def job(operation: Callable[[], T]) -> T:
    """Does something on the mount, which may wait for us: in a thread."""
    return await trio.to_thread.run_sync(operation, abandon_on_cancel=True)


def write(path: Path, content: bytes) -> Callable[[], Any]:
    return lambda: path.write_bytes(content)


async def fails_with(code: int, operation: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        await job(operation)
    assert caught.value.errno == code


async def counter(worker: SmallWorker) -> int:
    return int((await worker.ask("version"))["counter"])


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


async def test_a_hold_lapses_by_itself_even_when_asked_for_longer(
    mounted: Mounted, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("hold.lapsed")
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await worker.ask("hold", seconds=3600)
        with trio.fail_after(15):
            await job((mounted.path / "directory").mkdir)


async def test_a_hold_ends_with_the_worker_that_asked_for_it(mounted: Mounted) -> None:
    async with running_worker(mounted.place.socket) as worker:
        await worker.heard("hello")
        await worker.ask("hold", seconds=2)
    with trio.fail_after(15):
        await job(write(mounted.path / "file", b"no hold.lapsed in the log"))


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


async def test_attributes_tell_state_hash_identity_and_node(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"content")
    blob = mounted.place.seal("file")
    assert blob

    async def state(arguments: Arguments) -> dict[str, str]:
        return {"state": "ram,peer" if arguments["inode"] else "dirty", "hash": ""}

    def read(name: str, path: Path = mounted.path / "file") -> bytes:
        return os.getxattr(path, f"user.fuse_tier.{name}")

    async with running_worker(mounted.place.socket) as worker:
        worker.answers["state"] = state
        await worker.heard("changed")  # from then on the daemon asks
        assert await job(lambda: read("state")) == b"ram,peer"
        assert await job(lambda: read("hash")) == blob.digest.hex().encode()
        assert await job(lambda: read("identity")) == str(IDENTITY).encode()
        assert await job(lambda: read("node")) == mounted.place.socket.removesuffix(".volumes").encode()
        assert await job(lambda: read("state", mounted.path)) == b"dirty"
        with await job(lambda: (mounted.path / "file").open("ab")):
            assert await job(lambda: read("state")) == b"dirty"
        await fails_with(errno.ENODATA, lambda: read("other"))
        assert await job(lambda: os.listxattr(mounted.path / "file")) == []


def test_without_a_worker_attributes_tell_what_is_known_here(mnt: Path) -> None:
    with (mnt / "file").open("wb"):
        assert os.getxattr(mnt / "file", "user.fuse_tier.state") == b"dirty"
        assert os.getxattr(mnt, "user.fuse_tier.state") == b"dirty"
    assert os.getxattr(mnt / "file", "user.fuse_tier.state") == b"sealed"
    with pytest.raises(OSError) as caught:
        os.getxattr(mnt / "file", "user.fuse_tier.hash")
    assert caught.value.errno == errno.ENODATA


async def test_writing_the_sync_attribute_waits_for_a_tier(mounted: Mounted, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("sync.failed", "sync.timed_out")
    may_answer = trio.Event()

    async def sync(arguments: Arguments) -> dict[str, Any]:
        await may_answer.wait()
        if arguments["tier"] == "bucket":
            raise TierUnavailable("the bucket does not answer")
        if arguments["tier"] == "ram":
            raise DeadlineExceeded("not in time")
        return {}

    def ask(tier: str, path: Path = mounted.path) -> Callable[[], None]:
        return lambda: os.setxattr(path, "user.fuse_tier.sync", tier.encode())

    (mounted.path / "file").touch()
    async with running_worker(mounted.place.socket) as worker:
        worker.answers["sync"] = sync
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job, ask("peer"))
            arguments = await worker.heard("sync")
            assert arguments["tier"] == "peer"
            assert arguments["deadline_seconds"] > 0
            may_answer.set()
        await fails_with(errno.EIO, ask("bucket"))
        await fails_with(errno.ETIMEDOUT, ask("ram"))
        await fails_with(errno.EINVAL, ask("moon"))
        await fails_with(errno.EPERM, ask("peer", mounted.path / "file"))


def test_our_attributes_cannot_be_set_or_removed_and_others_are_kept(mnt: Path) -> None:
    (mnt / "file").touch()
    with pytest.raises(PermissionError):
        os.setxattr(mnt / "file", "user.fuse_tier.state", b"bucket")
    with pytest.raises(PermissionError):
        os.removexattr(mnt / "file", "user.fuse_tier.state")
    os.setxattr(mnt / "file", "user.note", b"kept")
    assert os.listxattr(mnt / "file") == ["user.note"]
    assert os.getxattr(mnt / "file", "user.note") == b"kept"
    with pytest.raises(OSError) as caught:
        os.setxattr(mnt / "file", "trusted.note", b"1")
    assert caught.value.errno == errno.EOPNOTSUPP


async def test_fsync_waits_for_the_configured_tier(
    start: Callable[..., Mounted], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("sync.failed")
    mounted = start(fsync="peer")

    async def fail(arguments: Arguments) -> None:
        raise TierUnavailable("no peer answers")

    async with running_worker(mounted.place.socket) as worker:
        with await job(lambda: (mounted.path / "file").open("wb", buffering=0)) as file:
            await job(lambda: file.write(b"content"))
            await job(lambda: os.fsync(file.fileno()))
            assert [arguments["tier"] for name, arguments in worker.calls if name == "sync"] == ["peer"]
            worker.answers["sync"] = fail
            await fails_with(errno.EIO, lambda: os.fsync(file.fileno()))


async def test_many_waiting_syncs_do_not_stop_the_mount(start: Callable[..., Mounted]) -> None:
    mounted = start(fsync="peer")
    may_answer = trio.Event()

    async def wait(arguments: Arguments) -> dict[str, Any]:
        await may_answer.wait()
        return {}

    files = [(mounted.path / str(number)).open("wb") for number in range(120)]
    limiter = trio.CapacityLimiter(len(files))

    async def fsync(fd: int) -> None:
        await trio.to_thread.run_sync(os.fsync, fd, limiter=limiter)

    async with running_worker(mounted.place.socket) as worker:
        worker.answers["sync"] = wait
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(fsync, file.fileno())
            await worker.heard_often("sync", len(files))
            await job(write(mounted.path / "another", b"served"))
            may_answer.set()
    for file in files:
        file.close()


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
