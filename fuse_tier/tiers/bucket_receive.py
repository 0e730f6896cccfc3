"""Where what comes out of a bucket goes: into a sink, or nowhere, hashed in either case."""

from __future__ import annotations

import os
from typing import Protocol

import xxhash

from fuse_tier.blobs import Blob, Incoming, Progress, ResumableIncoming, Sink, WholeSink
from fuse_tier.errors import Damaged, TierError
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.bucket_content import Interrupted
from fuse_tier.tiers.bucket_packs import Run
from fuse_tier.tiers.bucket_task import Task


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


class Destination(Protocol):
    """Where blobs go."""

    def open(self, blob: Blob) -> Receiver:
        """Takes a blob in piece by piece. Raises TierFull."""
        ...

    def take(self, blob: Blob, content: memoryview) -> None:
        """Takes in all of a blob. Raises Damaged, TierFull."""
        ...


class IntoSink:
    """Keeps blobs in a sink, which verifies them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._whole = sink if isinstance(sink, WholeSink) else None

    def open(self, blob: Blob) -> Receiver:
        """Takes a blob in piece by piece. Raises TierFull."""
        return _Into(self._sink.create(blob))

    def take(self, blob: Blob, content: memoryview) -> None:
        """Takes in all of a blob. Raises Damaged, TierFull."""
        if self._whole is not None:
            self._whole.take(blob, content)
            return
        receiver = self.open(blob)
        try:
            receiver.write(content, 0)
        except BaseException:
            receiver.discard()
            raise
        receiver.accept()


class _Into:
    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        if isinstance(incoming, ResumableIncoming):
            incoming.restart()  # all of it comes anew, in any order

    def write(self, piece: bytes | memoryview, offset: int) -> None:
        with memoryview(piece) as rest:
            done = 0
            while done < len(rest):
                done += os.pwrite(self._incoming.fd, rest[done:], offset + done)

    def accept(self) -> None:
        self._incoming.accept()

    def discard(self) -> None:
        self._incoming.discard()


class IntoNothing:
    """Hashes blobs and keeps none of them."""

    def open(self, blob: Blob) -> Receiver:
        """Takes a blob in piece by piece."""
        return _Hashing(blob)

    def take(self, blob: Blob, content: memoryview) -> None:
        """Raises Damaged unless this is the blob."""
        _check(hash_bytes(content), blob)


class _Hashing:
    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._state = xxhash.xxh3_128()
        self._size = 0

    def write(self, piece: bytes | memoryview, offset: int) -> None:
        """Pieces come in order."""
        self._state.update(piece)
        self._size = offset + len(piece)

    def accept(self) -> None:
        _check(Blob(self._state.digest(), self._size), self._blob)

    def discard(self) -> None:
        """Nothing is kept anyway."""


def _check(found: Blob, blob: Blob) -> None:
    if found != blob:
        raise Damaged(f"{found} is there in place of {blob}")


def unpack(
    content: memoryview, run: Run, destination: Destination, progress: Progress, task: Task
) -> dict[Blob, TierError | None]:
    """Blobs out of a part of a pack; what came of each."""
    outcome: dict[Blob, TierError | None] = {}
    for blob, start in run.members:
        if task.stop.is_set():
            raise Interrupted
        try:
            destination.take(blob, content[start - run.start : start - run.start + blob.size])
        except TierError as error:
            outcome[blob] = error
        else:
            outcome[blob] = None
            progress(blob.size)
    return outcome
