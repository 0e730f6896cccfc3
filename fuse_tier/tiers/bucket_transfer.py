"""One object there or back, tried until it works or it is clear that it will not: what runs in a thread.

Owns retries, and what a repeated attempt resumes at. A ``Task`` owns everything that it touches (descriptors,
what lands in a sink), so a thread that nobody waits for any longer harms nothing and ends at its next piece.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import closing
from typing import Final, Protocol

import structlog
import xxhash

from fuse_tier.blobs import Blob, Incoming, Progress, Sink, Source
from fuse_tier.errors import Damaged, TierError, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.bucket_content import Content, FileContent, Interrupted, MemoryContent, crc32c_text
from fuse_tier.tiers.bucket_layout import blob_object, pack_object
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_packs import INDEX_BYTES, PackIndex, Run, make_pack
from fuse_tier.tiers.bucket_task import Task

log = structlog.get_logger(__name__)
_RACES: Final = 4  # rounds of "there is one already" and "there is none any more" before we call it unavailable


class Receiver(Protocol):
    """Takes one blob's bytes in. Exactly one of ``accept`` and ``discard`` ends it."""

    def write(self, piece: bytes | memoryview, offset: int) -> None:
        """Takes a part."""
        ...

    def accept(self) -> None:
        """Raises Damaged unless what came is the blob."""
        ...

    def discard(self) -> None:
        """Nothing more will come."""
        ...


class IntoSink:
    """Keeps a blob in a sink, which verifies it. Raises TierFull."""

    def __init__(self, sink: Sink, blob: Blob) -> None:
        self._incoming: Incoming = sink.create(blob)

    def write(self, piece: bytes | memoryview, offset: int) -> None:
        """Takes a part."""
        with memoryview(piece) as rest:
            done = 0
            while done < len(rest):
                done += os.pwrite(self._incoming.fd, rest[done:], offset + done)

    def accept(self) -> None:
        """Raises Damaged."""
        self._incoming.accept()

    def discard(self) -> None:
        """Removes what landed."""
        self._incoming.discard()


class IntoNothing:
    """Hashes a blob and keeps none of it."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._state = xxhash.xxh3_128()
        self._size = 0

    def write(self, piece: bytes | memoryview, offset: int) -> None:
        """Takes a part; they come in order."""
        self._state.update(piece)
        self._size = offset + len(piece)

    def accept(self) -> None:
        """Raises Damaged."""
        found = Blob(self._state.digest(), self._size)
        if found != self._blob:
            raise Damaged(f"{found} is there in place of {self._blob}")

    def discard(self) -> None:
        """Nothing is kept anyway."""


Open = Callable[[Blob], Receiver]


def upload(objects: Objects, name: str, content: Content, progress: Progress, task: Task) -> Stored:
    """Sees to it that an object has this content: what is there already and differs in anything is replaced.

    For content that its name tells: never for a manifest.
    """
    told = 0

    def sent(position: int) -> None:
        nonlocal told
        if position > told:  # an attempt that is repeated moves nothing further at first
            progress(position - told)
            told = position

    replacing = 0
    for _ in range(_RACES):
        stored = task.retry(functools.partial(objects.put, name, content, replacing, sent, task.stop))
        if stored is None:
            stored = task.retry(lambda: objects.head(name))
        if stored is None:
            replacing = 0
        elif (stored.size, stored.crc32c) == (content.size, crc32c_text(content.crc32c)):
            return stored
        else:
            log.warning("bucket.object.replaced", object=name, found_bytes=stored.size, bytes=content.size)
            replacing = stored.generation
    raise TierUnavailable(f"{name} in the bucket is being replaced and removed by others: it cannot be written now")


def upload_blob(objects: Objects, blob: Blob, source: Source, progress: Progress, task: Task) -> Stored:
    """A blob as an object of its own. Raises what the source raises, and Damaged."""
    fd = source.open(blob)
    try:
        return upload(objects, blob_object(blob), FileContent(fd, blob, task.stop), progress, task)
    finally:
        os.close(fd)


def upload_pack(
    objects: Objects, blobs: tuple[Blob, ...], source: Source, progress: Progress, task: Task
) -> PackIndex:
    """Small blobs as one pack; gives its index. Raises what the source raises, and Damaged."""
    content = make_pack(blobs, source)
    pack = hash_bytes(content)
    upload(objects, pack_object(pack), MemoryContent(content), no_progress, task)
    progress(sum(blob.size for blob in blobs))
    return PackIndex.parse(pack, content[-INDEX_BYTES:])


def read_whole(objects: Objects, name: str, at_most: int, task: Task) -> bytes:
    """A small object. Raises NotFound, and Damaged if it is longer than anything of ours."""

    def attempt() -> bytes:
        text = bytearray()
        with closing(objects.read(name, 0, None, None, task.stop)) as pieces:
            for piece in pieces:
                text += piece
                if len(text) > at_most:
                    raise Damaged(f"{name} in the bucket is longer than {at_most} bytes: it is none of ours")
        return bytes(text)

    return task.retry(attempt)


def read_index(objects: Objects, pack: Blob, task: Task) -> PackIndex:
    """The index of a pack. Raises NotFound, Damaged."""
    return PackIndex.parse(pack, _read(objects, pack, max(0, pack.size - INDEX_BYTES), pack.size, task))


def download_blob(objects: Objects, blob: Blob, receive: Open, progress: Progress, task: Task) -> None:
    """A blob that is an object of its own. Raises NotFound, Damaged, TierFull, TierUnavailable."""
    receiver = receive(blob)
    done = 0

    def attempt() -> None:
        nonlocal done
        if 0 < done == blob.size:  # the connection broke after the last byte
            return
        with closing(objects.read(blob_object(blob), done, blob.size - done, blob.size, task.stop)) as pieces:
            for piece in pieces:
                receiver.write(piece, done)
                done += len(piece)
                task.advanced()
                progress(len(piece))

    try:
        task.retry(attempt)
    except BaseException:
        receiver.discard()
        raise
    receiver.accept()


def download_run(
    objects: Objects, run: Run, receive: Open, progress: Progress, task: Task
) -> dict[Blob, TierError | None]:
    """Blobs out of a pack, by one request; what came of each. Raises what befell all of them."""
    content = memoryview(_read(objects, run.pack, run.start, run.start + run.length, task))
    outcome: dict[Blob, TierError | None] = {}
    for blob, start in run.members:
        if task.stop.is_set():
            raise Interrupted
        try:
            receiver = receive(blob)
            try:
                receiver.write(content[start - run.start : start - run.start + blob.size], 0)
            except BaseException:
                receiver.discard()
                raise
            receiver.accept()
        except TierError as error:
            outcome[blob] = error
        else:
            outcome[blob] = None
            progress(blob.size)
    return outcome


def _read(objects: Objects, pack: Blob, start: int, end: int, task: Task) -> bytearray:
    content = bytearray()

    def attempt() -> None:
        at = start + len(content)
        if at == end:
            return
        with closing(objects.read(pack_object(pack), at, end - at, pack.size, task.stop)) as pieces:
            for piece in pieces:
                content.extend(piece)
                task.advanced()

    task.retry(attempt)
    return content
