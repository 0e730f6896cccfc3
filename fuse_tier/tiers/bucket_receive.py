"""Where what comes out of a bucket goes: into a sink, or nowhere, hashed in either case."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import xxhash

from fuse_tier.blobs import Blob, Incoming, Progress, ResumingSink, Sink
from fuse_tier.errors import Damaged, TierError
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


class IntoSink:
    """Keeps a blob in a sink, which verifies it. Raises TierFull."""

    def __init__(self, sink: Sink, blob: Blob) -> None:
        if isinstance(sink, ResumingSink):
            begun = sink.create(blob)
            begun.restart()  # all of it comes anew, in any order
            self._incoming: Incoming = begun
        else:
            self._incoming = sink.create(blob)

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


def unpack(
    content: memoryview, run: Run, receive: Open, progress: Progress, task: Task
) -> dict[Blob, TierError | None]:
    """Blobs out of a part of a pack; what came of each."""
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
