"""Attributes that the worker answers, and what waits for it: fsync and the sync attribute."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.errors import DeadlineExceeded, TierUnavailable
from fuse_tier.wire.channel import Arguments
from tests.fs.jobs import fails_with, job, write
from tests.fs.mounted import IDENTITY, Mounted
from tests.fs.worker import running_worker
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.fuse


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
    assert caught.value.errno == (errno.EPERM if os.geteuid() else errno.EOPNOTSUPP)  # the kernel asks root only


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
