"""xxh3-128 of file content.

Reads rather than a mapping: a file that is truncated under a mapping would kill the process (SIGBUS), and
the buffer stays in the processor's cache.
"""

from __future__ import annotations

import os

import xxhash

from fuse_tier.blobs import Blob

_STEP = 1 << 20  # large enough for os.preadv and xxhash to give the interpreter lock back, small enough for L2


def hash_descriptor(fd: int) -> Blob:
    """The blob that the file behind ``fd`` is, from its start to its end; the offset is left alone."""
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_STEP, max(1, os.fstat(fd).st_size))))
    size = 0
    while got := os.preadv(fd, [buffer], size):
        state.update(buffer[:got])
        size += got
    return Blob(state.digest(), size)


def hash_bytes(content: bytes) -> Blob:
    """The blob that these bytes are."""
    return Blob(xxhash.xxh3_128_digest(content), len(content))
