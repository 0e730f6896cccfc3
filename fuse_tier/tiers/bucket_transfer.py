"""Small texts out of a bucket, whole: manifests, documents, the indexes of packs. What runs in a thread."""

from __future__ import annotations

from collections.abc import Iterator

from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, TierUnavailable
from fuse_tier.tiers.bucket_checksums import crc32c, crc32c_text
from fuse_tier.tiers.bucket_layout import pack_object
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_packs import INDEX_BYTES, PackIndex
from fuse_tier.tiers.bucket_task import Task

FIRST_STALL_SECONDS = 1.0  # small texts come at once, or another request is faster


def read_whole(objects: Objects, name: str, at_most: int, task: Task) -> bytes:
    """A small object. Raises NotFound, and Damaged if it is longer than anything of ours."""

    stalls = _growing()

    def attempt() -> bytes:
        text = bytearray()
        with objects.read(name, 0, None, None, task.stop, next(stalls)) as reading:
            for piece in reading.pieces:
                text += piece
                if len(text) > at_most:
                    raise Damaged(f"{name} in the bucket is longer than {at_most} bytes: it is none of ours")
        if reading.crc32c is not None and reading.crc32c != crc32c_text(crc32c().value(bytes(text))):
            raise TierUnavailable(f"{name} arrived damaged: it must be read again")
        return bytes(text)

    return task.retry(attempt)


def read_index(objects: Objects, pack: Blob, task: Task) -> PackIndex:
    """The index of a pack. Raises NotFound, Damaged."""
    try:
        return PackIndex.parse(pack, _tail(objects, pack, task))
    except Damaged:  # it may have been changed on its way
        return PackIndex.parse(pack, _tail(objects, pack, task))


def _tail(objects: Objects, pack: Blob, task: Task) -> bytes:
    start, stalls = max(0, pack.size - INDEX_BYTES), _growing()

    def attempt() -> bytes:
        with objects.read(pack_object(pack), start, pack.size - start, pack.size, task.stop, next(stalls)) as reading:
            return b"".join(reading.pieces)

    return task.retry(attempt)


def _growing() -> Iterator[float]:
    """How long each attempt waits for bytes: a service that is slow altogether gets the time that it needs."""
    seconds = FIRST_STALL_SECONDS
    while True:
        yield min(seconds, Deadline.BUCKET_STALL)
        seconds *= 2
