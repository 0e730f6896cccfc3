"""xxh3-128 of file content.

Reads rather than a mapping: a file that is truncated under a mapping would kill the process (SIGBUS), and
the buffer stays in the processor's cache. Only a file that nobody else may truncate, while it is received, is mapped.
"""

from __future__ import annotations

import mmap
import os
import threading

import xxhash

from fuse_tier.blobs import Blob, Progress
from fuse_tier.reading import lost_is_damaged

_STEP = 1 << 20  # large enough for os.preadv and xxhash to give the interpreter lock back, small enough for L2
_READ_AT_MOST = 64 << 10  # a mapping costs more than a read of so little
_WINDOW = 4 << 20  # of a file under RunningHash: what is mapped counts as the process's memory; whole huge pages


def hash_descriptor(fd: int, progress: Progress | None = None) -> Blob:
    """The blob that the file behind ``fd`` is, from its start to its end; the offset is left alone.

    ``progress`` is told of each part that was read, and may end the reading by raising. Raises Damaged when a part
    cannot be read.
    """
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_STEP, max(1, os.fstat(fd).st_size))))
    size = 0
    with lost_is_damaged("content"):
        while got := os.preadv(fd, [buffer], size):
            state.update(buffer[:got])
            size += got
            if progress is not None:
                progress(got)
    return Blob(state.digest(), size)


def hash_beginning(fd: int, size: int) -> bytes:
    """The digest of the first ``size`` bytes, or of all there are when there are fewer. Raises Damaged, as above."""
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_STEP, max(1, size))))
    done = 0
    with lost_is_damaged("content"):
        while done < size and (got := os.preadv(fd, [buffer[: size - done]], done)):
            state.update(buffer[:got])
            done += got
    return state.digest()


def hash_bytes(content: bytes | memoryview) -> Blob:
    """The blob that these bytes are."""
    return Blob(xxhash.xxh3_128_digest(content), len(content))


_of_thread = threading.local()


def _buffer_of_this_thread() -> memoryview:
    """Made once: fresh memory costs more than what is read into it."""
    try:
        buffer: memoryview = _of_thread.buffer
    except AttributeError:
        buffer = _of_thread.buffer = memoryview(bytearray(_STEP))
    return buffer


class RunningHash:
    """Hashes a file while it is written from its start, each part while it is still in the processor's cache.

    One that is ``mapped``, a window at a time, costs less: only for files of which all ``size`` bytes are allocated
    and that nobody else can truncate. ``close`` it.
    """

    def __init__(self, fd: int, size: int, *, mapped: bool = False) -> None:
        self._fd = fd
        self._size = size
        self._is_mapped = mapped and size > _READ_AT_MOST
        self._state = xxhash.xxh3_128()
        self._window: mmap.mmap | None = None
        self._window_start = 0
        self.done = 0  # bytes hashed

    def advance(self, to: int) -> None:
        """What stands before offset ``to`` has been written."""
        if not self._is_mapped:
            self._read(to)
            return
        while self.done < to:
            window = self._window_at(self.done)
            start = self.done - self._window_start
            with memoryview(window) as whole, whole[start : start + to - self.done] as part:
                self._state.update(part)
                self.done += len(part)

    def _read(self, to: int) -> None:
        buffer = _buffer_of_this_thread()
        while self.done < to and (got := os.preadv(self._fd, [buffer[: to - self.done]], self.done)):
            self._state.update(buffer[:got])
            self.done += got

    def digest(self) -> bytes:
        """Of what was hashed so far."""
        return self._state.digest()

    def close(self) -> None:
        """Gives the mapping back; ``digest`` still answers."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _window_at(self, offset: int) -> mmap.mmap:
        start = offset - offset % _WINDOW
        if self._window is None or start != self._window_start:
            self.close()
            length = min(_WINDOW, self._size - start)
            self._window = mmap.mmap(self._fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
            self._window_start = start
        return self._window
