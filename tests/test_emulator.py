from __future__ import annotations

import os
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from fuse_tier.emulator import EmulatorError, running_emulator


def _status(url: str, content: bytes | None = None) -> int:
    request = urllib.request.Request(url, content, {"Content-Type": "application/octet-stream"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def _upload(endpoint: str) -> int:
    return _status(f"{endpoint}/upload/storage/v1/b/shelf/o?uploadType=media&name=a/book", b"words")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_answers_has_the_bucket_and_is_gone_afterwards() -> None:
    async with running_emulator("shelf") as emulator:
        assert emulator.bucket == "shelf"
        assert await trio.to_thread.run_sync(_status, f"{emulator.endpoint}/storage/v1/b/shelf/o") == 200
        assert _alive(emulator.pid)
    assert not _alive(emulator.pid)


async def test_two_of_them_run_side_by_side() -> None:
    async with running_emulator("shelf") as one, running_emulator("shelf") as other:
        assert one.endpoint != other.endpoint


async def test_it_ends_although_its_user_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        async with running_emulator("shelf") as emulator:
            raise ZeroDivisionError
    assert not _alive(emulator.pid)


async def test_it_ends_although_it_was_killed_before() -> None:
    async with running_emulator("shelf") as emulator:
        os.kill(emulator.pid, signal.SIGKILL)
    assert not _alive(emulator.pid)


async def test_it_comes_back_at_the_same_address_with_what_its_directory_holds(tmp_path: Path) -> None:
    async with running_emulator("shelf", directory=str(tmp_path)) as first:
        assert await trio.to_thread.run_sync(_upload, first.endpoint) == 200
    async with running_emulator("shelf", port=first.port, directory=str(tmp_path)) as second:
        assert second.endpoint == first.endpoint
        assert await trio.to_thread.run_sync(_status, f"{second.endpoint}/storage/v1/b/shelf/o/a%2Fbook") == 200


async def test_in_memory_it_comes_back_empty() -> None:
    async with running_emulator("shelf") as first:
        assert await trio.to_thread.run_sync(_upload, first.endpoint) == 200
    async with running_emulator("shelf", port=first.port) as second:
        assert await trio.to_thread.run_sync(_status, f"{second.endpoint}/storage/v1/b/shelf/o/a%2Fbook") == 404


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmulatorError, match=f"127.0.0.1:{port} is taken"):
            async with running_emulator("shelf", port=port):
                pass


async def test_a_bucket_name_that_it_refuses_is_told() -> None:
    with pytest.raises(EmulatorError, match="refused to make the bucket 'x'"):
        async with running_emulator("x"):
            pass
