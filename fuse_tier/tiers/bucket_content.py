"""Bytes on their way to a bucket: where they come from, their checksums, and the body of the request.

Content is checked before it is sent: its hash, because nothing may get a name that it does not deserve, and its
CRC-32C, which goes ahead of it so that Cloud Storage refuses what was changed on the way.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from threading import Event
from typing import ClassVar, Final, Protocol

import xxhash

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged

PIECE: Final = 1 << 20  # bytes a read: large enough that the interpreter costs little


class Interrupted(Exception):
    """Nobody waits for this work any longer."""


class Content(Protocol):
    """Bytes to upload."""

    @property
    def size(self) -> int:
        """How many."""
        ...

    @property
    def crc32c(self) -> int:
        """Their CRC-32C (Castagnoli)."""
        ...

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of them, from the start, each time that it is called."""
        ...


def crc32c_text(value: int) -> str:
    """A CRC-32C as Cloud Storage writes it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


class FileContent:
    """What is behind a descriptor, which stays the caller's and whose offset is left alone.

    Raises Damaged unless it is the blob that it is said to be. Never all of it is in memory.
    """

    def __init__(self, fd: int, blob: Blob, stop: Event) -> None:
        import google_crc32c

        self.size = blob.size
        self.crc32c = 0
        self._fd = fd
        state = xxhash.xxh3_128()
        found = 0
        for piece in self._read(1 << 63):
            if stop.is_set():
                raise Interrupted
            state.update(piece)
            self.crc32c = google_crc32c.extend(self.crc32c, piece)
            found += len(piece)
        if Blob(state.digest(), found) != blob:
            raise Damaged(f"the source holds {Blob(state.digest(), found)} in place of {blob}")

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it, from the start. Raises Damaged when it was cut meanwhile."""
        done = 0
        for piece in self._read(self.size):
            done += len(piece)
            yield piece
        if done < self.size:
            raise Damaged(f"a file of {self.size} bytes was cut to {done} while it was uploaded")

    def _read(self, size: int) -> Iterator[bytes]:
        done = 0
        while piece := os.pread(self._fd, min(PIECE, size - done), done):
            yield piece
            done += len(piece)


class MemoryContent:
    """Bytes in memory: a pack, a manifest."""

    def __init__(self, content: bytes) -> None:
        import google_crc32c

        self.size = len(content)
        self.crc32c = int(google_crc32c.value(content))
        self.content = content

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it, from the start."""
        view = memoryview(self.content)
        return (view[start : start + PIECE] for start in range(0, self.size, PIECE))


class UploadBody:
    """A multipart body (RFC 2387): an object's metadata, then its content, read piece by piece."""

    _BOUNDARY: ClassVar = b"fuse-tier-7f0b6d1e5a9c42d8b3a5c1"  # 120 bits that no content holds by chance
    TYPE: ClassVar = f"multipart/related; boundary={_BOUNDARY.decode()}"

    def __init__(self, resource: bytes, content: Content, sent: Callable[[int], None], stop: Event) -> None:
        line = b"--" + self._BOUNDARY
        described = (b"Content-Type: application/json; charset=UTF-8", b"", resource, line)
        self._head = b"\r\n".join((line, *described, b"Content-Type: application/octet-stream", b"", b""))
        self._tail = b"\r\n" + line + b"--\r\n"
        self._content = content
        self._sent = sent
        self._stop = stop
        self._pieces = self._all()

    def __len__(self) -> int:
        return len(self._head) + self._content.size + len(self._tail)

    def __iter__(self) -> Iterator[bytes | memoryview]:  # what tells requests that it can be streamed
        return self._pieces

    def read(self, _size: int = -1) -> bytes | memoryview:
        """The next piece, of a size of our own; empty at the end, and then all over again.

        For the session sends a request a second time when its credentials were out of date.
        """
        piece = next(self._pieces, None)
        if piece is None:
            self._pieces = self._all()
        return piece or b""

    def _all(self) -> Iterator[bytes | memoryview]:
        yield self._head
        done = 0
        for piece in self._content.pieces():
            if self._stop.is_set():
                raise Interrupted
            yield piece
            done += len(piece)
            self._sent(done)  # somebody asks for more: that piece has gone to the kernel
        yield self._tail
