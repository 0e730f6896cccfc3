"""Bytes on their way to a bucket: where they come from, their checksums, and the body of the request.

What is read is hashed on its way, and read once. Content that is small enough, and each part of what is large, is
held in memory while it is sent: its CRC-32C goes ahead of it, so that Cloud Storage refuses what was changed on the
way. What is streamed has its CRC-32C compared with the answer, and its last piece is held back until its hash is
known to be right: so nothing gets a name that it does not deserve.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Generator, Iterator
from threading import Event
from typing import Any, ClassVar, Final, Protocol

import xxhash

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged
from fuse_tier.reading import lost_is_damaged
from fuse_tier.tiers.bucket_checksums import crc32c

PIECE: Final = 1 << 20  # bytes a read: large enough that the interpreter costs little
IN_MEMORY: Final = 4 << 20  # bytes: content of up to that size is read before it is sent


class Interrupted(Exception):
    """Nobody waits for this work any longer."""


class Stop(Event):
    """Set when nobody waits any longer for what a thread does. ``ending`` ends what it waits for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.ending: Callable[[], object] | None = None

    def set(self) -> None:
        """May be called from any thread."""
        super().set()
        if (ending := self.ending) is not None:
            ending()


class Content(Protocol):
    """Bytes to upload."""

    @property
    def size(self) -> int:
        """How many."""
        ...

    @property
    def crc32c(self) -> int | None:
        """Their CRC-32C (Castagnoli); None before they have been read."""
        ...

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of them, from the start, each time that it is called."""
        ...


class Reader:
    """Reads a blob from a descriptor, once, from its start to its end; the descriptor's offset is left alone.

    Tells the CRC-32C of what it has read, and whether that was the blob.
    """

    def __init__(self, fd: int, blob: Blob) -> None:
        self.done = 0  # bytes
        self.crc32c = 0
        self._fd = fd
        self._blob = blob
        self._state = xxhash.xxh3_128()
        self._crc: Any = crc32c()

    def piece(self, at_most: int = PIECE) -> bytes:
        """The next one; empty at the end. Raises Damaged when it cannot be read."""
        with lost_is_damaged(self._blob):
            # One byte more than the blob has tells that the file has more, too.
            piece = os.pread(self._fd, min(PIECE, at_most, self._blob.size + 1 - self.done), self.done)
        self._state.update(piece)
        self.crc32c = self._crc.extend(self.crc32c, piece)
        self.done += len(piece)
        return piece

    def part(self, size: int) -> MappedContent:
        """The next so many bytes; fewer at the end."""
        return MappedContent(self, size)

    def rest(self) -> bytes:
        """All that is left."""
        return b"".join(iter(self.piece, b""))

    def check(self) -> None:
        """Raises Damaged unless what was read is the blob, and all that there is."""
        self.piece()
        found = Blob(self._state.digest(), self.done)
        if found != self._blob:
            raise Damaged(f"the source holds {found} in place of {self._blob}")


class StreamedContent:
    """What is behind a descriptor, which stays the caller's. Never all of it is in memory."""

    def __init__(self, fd: int, blob: Blob) -> None:
        self.size = blob.size
        self.crc32c: int | None = None
        self._fd = fd
        self._blob = blob

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it. Raises Damaged, before the last piece, unless it is the blob that it is said to be."""
        reader = Reader(self._fd, self._blob)
        held = b""
        while piece := reader.piece():
            if held:
                yield held
            held = piece
        reader.check()
        self.crc32c = reader.crc32c
        if held:
            yield held


class MemoryContent:
    """Bytes in memory: a small blob, a pack, a manifest."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.crc32c = int(crc32c().value(content))
        self.content = content

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it, from the start."""
        view = memoryview(self.content)
        return (view[start : start + PIECE] for start in range(0, self.size, PIECE))


class MappedContent:
    """A part of a large blob, in memory that goes back to the system as soon as nobody has it any more.

    The allocator keeps what it gave to one thread and another one freed: with megabytes for each of many threads that
    adds up to several times of what is ever used at once.
    """

    def __init__(self, reader: Reader, size: int) -> None:
        self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.size = 0
        self.crc32c = 0
        extend = crc32c().extend
        while self.size < size and (piece := reader.piece(size - self.size)):
            self._memory[self.size : self.size + len(piece)] = piece
            self.crc32c = extend(self.crc32c, piece)
            self.size += len(piece)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it, from the start."""
        view = memoryview(self._memory)[: self.size]
        return (view[start : start + PIECE] for start in range(0, self.size, PIECE))


def content_of(fd: int, blob: Blob) -> MemoryContent | StreamedContent:
    """What is behind a descriptor, checked before it is sent where it is small. Raises Damaged."""
    if blob.size > IN_MEMORY:
        return StreamedContent(fd, blob)
    reader = Reader(fd, blob)
    content = reader.rest()
    reader.check()
    return MemoryContent(content)


class UploadBody:
    """A multipart body (RFC 2387): an object's metadata, then its content, piece by piece, of sizes of our own.

    ``passing`` is told of each piece before it is sent, and may wait; ``sent`` how much has gone.
    """

    _BOUNDARY: ClassVar = b"fuse-tier-7f0b6d1e5a9c42d8b3a5c1"  # 120 bits that no content holds by chance
    TYPE: ClassVar = f"multipart/related; boundary={_BOUNDARY.decode()}"

    def __init__(
        self,
        resource: bytes,
        content: Content,
        sent: Callable[[int], None],
        passing: Callable[[int, Event], None],
        stop: Event,
    ) -> None:
        line = b"--" + self._BOUNDARY
        described = (b"Content-Type: application/json; charset=UTF-8", b"", resource, line)
        self._head = b"\r\n".join((line, *described, b"Content-Type: application/octet-stream", b"", b""))
        self._tail = b"\r\n" + line + b"--\r\n"
        self._content = content
        self._sent = sent
        self._passing = passing
        self._stop = stop
        self._current = self._all()

    def __len__(self) -> int:
        return len(self._head) + self._content.size + len(self._tail)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """All of it, from its start: the session sends a request a second time when its credentials were out of date,
        and the answer that says so may come before the first one was sent to its end.
        """
        self._current = self._all()
        return self._current

    def close(self) -> None:
        """Lets go of the content, which it would keep until garbage is collected."""
        self._current.close()

    def _all(self) -> Generator[bytes | memoryview, None, None]:
        yield self._head
        done = 0
        for piece in self._content.pieces():
            self._passing(len(piece), self._stop)
            if self._stop.is_set():
                raise Interrupted
            yield piece
            done += len(piece)
            self._sent(done)  # somebody asks for more: that piece has gone to the kernel
        yield self._tail
