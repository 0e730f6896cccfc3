"""Immutable file content: its name, where it is read from, where it is written to.

A blob is named by what it is, so a copy is right or it is not that blob. The protocols here are the seam
between those who move bytes (streams, buckets) and those who keep them (the RAM tier, a directory).
All their methods block on memory or disk only, and are called in worker threads.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fuse_tier.errors import InvalidRequest

MAX_BLOB_SIZE = (1 << 63) - 1  # what off_t can say
_NAME = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,18})")

Progress = Callable[[int], None]
"""Told how many further bytes have been moved; called from any thread, must not block."""


@dataclass(frozen=True, slots=True, order=True)
class Blob:
    """Immutable file content, named by what it is."""

    digest: bytes  # xxh3-128, 16 bytes, big endian
    size: int  # bytes

    def __post_init__(self) -> None:
        if len(self.digest) != 16 or not 0 <= self.size <= MAX_BLOB_SIZE:
            raise InvalidRequest(f"no blob has digest {self.digest.hex()} and size {self.size}")

    @property
    def name(self) -> str:
        """``<32 hex digits>-<size in bytes>``: a file or object name."""
        return f"{self.digest.hex()}-{self.size}"

    @classmethod
    def parse(cls, name: str) -> Blob:
        """The inverse of ``name``. Raises InvalidRequest."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidRequest(f"{name!r} is no blob name: expected 32 hex digits, '-', and the size")
        return cls(bytes.fromhex(match[1]), int(match[2]))

    def __str__(self) -> str:
        return self.name


class Source(Protocol):
    """A place to read blobs from."""

    def open(self, blob: Blob) -> int:
        """A read-only descriptor at the start of the content, owned by the caller. Raises NotFound, Damaged.

        The bytes are not verified yet, and may change while they are read: in RAM a blob may be a live file, which
        becomes another file when a job writes to it (``ram/pins.py``). So whoever copies from here lets the
        receiver hash what landed, and when that is something else, opens once more before it calls it damage.
        """
        ...


class Incoming(Protocol):
    """A blob on its way in. Exactly one of ``accept`` and ``discard`` ends it; both close the descriptor."""

    fd: int
    """Open for reading and writing; room for the blob's size is already allocated."""

    def accept(self) -> None:
        """Hashes what landed and, if it is the blob, gives it its name at once. Raises Damaged (and discards)."""
        ...

    def discard(self) -> None:
        """Removes what landed."""
        ...


class Sink(Protocol):
    """A place to write blobs to."""

    def create(self, blob: Blob) -> Incoming:
        """Makes room for a blob. Raises TierFull."""
        ...


@runtime_checkable
class WholeSink(Sink, Protocol):
    """A sink that takes in one step what is all in memory: a small blob is then a fraction of the work."""

    def take(self, blob: Blob, content: memoryview) -> None:
        """Hashes content and, if it is the blob, keeps it. Raises Damaged, TierFull; nothing is left then."""
        ...


@dataclass(frozen=True, slots=True)
class Partial:
    """The beginning of a blob that landed before its transfer broke."""

    size: int  # bytes
    digest: bytes  # xxh3-128 of them


class ResumableIncoming(Incoming):
    """A blob on its way in that may stop in the middle and go on later. ``keep`` is a third way to end it.

    No protocol: what is asked of each blob has to be quick, and ``isinstance`` of one takes longer than a small file.
    """

    @property
    @abstractmethod
    def offset(self) -> int:
        """How much is there: at first what an earlier transfer brought, then what ``landed`` was told."""

    @abstractmethod
    def restart(self) -> None:
        """Begins anew, with nothing."""

    @abstractmethod
    def landed(self, offset: int) -> None:
        """What stands before ``offset`` has been written; it is hashed now, while it is in the processor's cache."""

    @abstractmethod
    def keep(self) -> None:
        """Closes the descriptor; what landed stays for another ``create`` of the blob, for a while."""


@runtime_checkable
class ResumingSink(Sink, Protocol):
    """A sink that keeps what a broken transfer brought."""

    def create(self, blob: Blob) -> ResumableIncoming:
        """Makes room for a blob, or goes on with what is kept of it. Raises TierFull."""
        ...

    def partial(self, blob: Blob) -> Partial | None:
        """What is kept of a blob, or None."""
        ...
