"""How the bodies of requests are put together where several kinds share it, and what a handler of one kind is.

A handler takes a request apart, calls its operation, and puts the answer together. It gives the answer at once where
the operation never waits, else a coroutine. A message stands in a buffer that the next one overwrites, so all that
an operation keeps is copied out of it before the operation first waits; of a write's content only what there is no
room for yet, because a write waits for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from struct import Struct
from typing import Any, Final

from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Opened, Request
from fuse_tier.fs.session import Answer
from fuse_tier.mount.messages import OPENED

Handler = Callable[[Operations, Request, memoryview], Answer | Coroutine[Any, Any, Answer]]

DATA_ONLY: Final = 1 << 0  # FUSE_FSYNC_FDATASYNC, linux/fuse.h
HANDLE_FLAGS: Final = Struct("=QI")
READ: Final = Struct("=QQI")


def name_in(body: memoryview, offset: int = 0) -> bytes:
    """The name that ends a body."""
    return bytes(body[offset:-1])


def two_names_in(body: memoryview, offset: int = 0) -> tuple[bytes, bytes]:
    """The two names that end a body."""
    first, _, second = name_in(body, offset).partition(b"\0")
    return first, second


def opened_reply(opened: Opened) -> bytes:
    """What tells the kernel of an open file or directory."""
    return OPENED.pack(opened.handle, opened.flags, opened.backing)
