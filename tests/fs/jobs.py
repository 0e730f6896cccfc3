"""What a job does on a mount while its test plays the worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from tests.fs.worker import SmallWorker

T = TypeVar("T")


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


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
