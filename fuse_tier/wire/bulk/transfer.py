"""Blobs over a stream: from a source on one end into a sink on the other, in an order both know.

Runs in threads. Small files share buffers of 256 KiB on both ends, so that ten thousand of them are not ten
thousand packets; large ones never pass through this process's memory where the stream is in the clear.
Invariant: whatever arrives is either accepted by the sink, which hashes it, or discarded; and memory does not
grow with what the other side sends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fuse_tier import metrics
from fuse_tier.blobs import Blob, Incoming, Partial, Progress, ResumableIncoming, Sink, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, TierError
from fuse_tier.hashing import hash_beginning
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Outcome
from fuse_tier.wire.bulk.streams import Stream, StreamBroken, read_there, write_fully

_BUFFER_BYTES = 256 << 10
_SMALL = 64 << 10  # files up to this size share a sender's buffer
_LARGE = 1 << 20  # what is left of a file from this size on bypasses a receiver's buffer
_HASHED_AT_ONCE = 1 << 20  # bytes that are surely still in the processor's cache
_SLOWEST_SILENCE = 200e6  # bytes a second: touching memory that the host of a VM has not backed yet, then hashing


def patience_for(blobs: Sequence[Blob]) -> float:
    """Seconds without a byte after which a stream has stalled: a receiver is silent while it allocates and hashes.

    A size may be no more than somebody's word, so there is a longest.
    """
    largest = max((blob.size for blob in blobs), default=0)
    return min(Deadline.BULK_STALL + largest / _SLOWEST_SILENCE, Deadline.BULK_STALL_LONGEST)


@dataclass(slots=True)
class Receipt:
    """What came of a transfer so far: a blob that is in neither was not come to."""

    arrived: set[Blob] = field(default_factory=set)
    failed: dict[Blob, TierError] = field(default_factory=dict)
    torn: set[Blob] = field(default_factory=set)  # failed, and worth another try: see local.py, copy_blob


def transmit(
    stream: Stream, blobs: Sequence[Blob], source: Source, progress: Progress, begun: Mapping[Blob, Partial]
) -> dict[Blob, TierError]:
    """Sends the blobs in order; gives those that the source could not produce. Raises StreamBroken.

    Of what the receiver has ``begun`` with, the rest goes out, if it is a beginning of what we have. A file that
    has become shorter, or cannot be read, is filled up with zeros: it is the receiver who finds that it is not the
    blob. The receiver gets as much patience as what was really there asks for, whatever else it has named.
    """
    failed: dict[Blob, TierError] = {}
    largest = -1
    outgoing = _Outgoing(stream)
    progress = _counted("out", progress)
    for blob in blobs:
        try:
            fd = source.open(blob)
        except TierError as error:
            failed[blob] = error
            outgoing.add(format.encode_header(blob, format.outcome_of(error)))
            continue
        try:
            if blob.size > largest:
                largest = blob.size
                stream.patience(patience_for([blob]))
            offset = _agreed_offset(fd, blob, begun.get(blob))
            outgoing.add(format.encode_header(blob, Outcome.OK, offset))
            if blob.size <= _SMALL and not offset:
                outgoing.add_file(fd, blob.size)
                progress(blob.size)
            else:
                outgoing.flush(more_follows=offset < blob.size)
                stream.send_file(fd, offset, blob.size - offset, progress)
        finally:
            os.close(fd)
    outgoing.flush()
    return failed


def _counted(direction: str, progress: Progress) -> Progress:
    def moved(size: int) -> None:
        metrics.bulk_moved(direction, size)
        progress(size)

    return moved


def _agreed_offset(fd: int, blob: Blob, begun: Partial | None) -> int:
    if begun is None or not 0 < begun.size < blob.size:
        return 0
    try:
        return begun.size if hash_beginning(fd, begun.size) == begun.digest else 0
    except Damaged:  # the receiver will find that, too
        return 0


def receive(
    stream: Stream,
    blobs: Sequence[Blob],
    sink: Sink,
    progress: Progress,
    receipt: Receipt,
    begun: Mapping[Blob, Partial],
    *,
    ends_early: bool,
) -> None:
    """Receives the blobs in order, and notes for each how it went, as it goes.

    ``begun`` is what the sender was told that we have: of nothing else it may send only the rest. What the sink
    refuses is read and forgotten; with ``ends_early`` not if it is the last, after which the stream is of no use.
    Raises StreamBroken, and then a sink that can keeps what landed of the blob under way; InvalidRequest when
    something else comes, and OSError when the sink's file can not be written: then it is discarded.
    """
    incoming = _Incoming(stream)
    progress = _counted("in", progress)
    for blob in blobs:
        # Of a large file nothing shall be in the buffer: it would be written by itself, and zeros after it.
        header = incoming.take(format.HEADER_BYTES, and_no_more=blob.size >= _LARGE)
        outcome = format.decode_header(header, blob)
        if outcome not in (Outcome.OK, Outcome.RESUMED):
            receipt.failed[blob] = format.ERRORS[outcome](f"the sender could not read {blob}: {outcome.name.lower()}")
            continue
        try:
            landing = sink.create(blob)
        except TierError as error:
            receipt.failed[blob] = error
            offset = incoming.take_offset(blob, _told(begun, blob)) if outcome is Outcome.RESUMED else 0
            if not (ends_early and blob == blobs[-1]):
                incoming.skip(blob.size - offset)
            continue
        try:
            _land(incoming, landing, blob, outcome, progress)
        except StreamBroken:
            if isinstance(landing, ResumableIncoming):
                landing.keep()
            else:
                landing.discard()
            raise
        except BaseException:
            landing.discard()
            raise
        try:
            landing.accept()
        except TierError as error:
            receipt.failed[blob] = error
            if isinstance(error, Damaged):
                receipt.torn.add(blob)
        else:
            receipt.arrived.add(blob)


def _told(begun: Mapping[Blob, Partial], blob: Blob) -> int:
    return begun[blob].size if blob in begun else 0


def _land(incoming: _Incoming, landing: Incoming, blob: Blob, outcome: Outcome, progress: Progress) -> None:
    """The content of one blob, as much as is still to come."""
    resumable = landing if isinstance(landing, ResumableIncoming) else None
    offset = resumable.offset if resumable is not None else 0
    if outcome is Outcome.RESUMED:
        incoming.take_offset(blob, offset)
    elif resumable is not None and offset:
        resumable.restart()
        offset = 0
    incoming.take_file(landing.fd, offset, blob.size, progress, resumable)


def send_verdicts(stream: Stream, blobs: Sequence[Blob], failed: dict[Blob, TierError]) -> None:
    """What became of each blob, for the sender. Raises StreamBroken."""
    stream.send(b"".join(format.encode_verdict(failed.get(blob)) for blob in blobs))


def receive_verdicts(stream: Stream, blobs: Sequence[Blob], receipt: Receipt) -> None:
    """Notes what the receiver says of each blob. Raises StreamBroken, InvalidRequest."""
    incoming = _Incoming(stream)
    for blob in blobs:
        outcome, length = format.decode_verdict(incoming.take(format.VERDICT_BYTES))
        reason = bytes(incoming.take(length)).decode(errors="replace")
        if outcome is Outcome.OK:
            receipt.arrived.add(blob)
            continue
        receipt.failed[blob] = format.ERRORS[outcome](reason)
        if outcome is Outcome.DAMAGED:
            receipt.torn.add(blob)


class _Outgoing:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._used = 0

    def add(self, content: bytes) -> None:
        """Sent soon: with what follows, or by ``flush``."""
        self._buffer[self._reserve(len(content)) : self._used] = content

    def add_file(self, fd: int, size: int) -> None:
        """A file from its start; if it is shorter, or cannot be read, zeros go in its place."""
        place = self._buffer[self._reserve(size) : self._used]
        got = 0
        while got < size:
            step = read_there(fd, place[got:], got)
            if not step:
                place[got:] = bytes(size - got)
                return
            got += step

    def flush(self, *, more_follows: bool = False) -> None:
        """Sends what was added."""
        self._stream.send(self._buffer[: self._used], more_follows=more_follows)
        self._used = 0

    def _reserve(self, size: int) -> int:
        if self._used + size > len(self._buffer):
            self.flush()
        self._used += size
        return self._used - size


class _Incoming:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = 0
        self._end = 0

    def take(self, size: int, *, and_no_more: bool = False) -> memoryview:
        """Exactly so many bytes, fewer than the buffer has; valid until the next call. What follows may come too."""
        held = self._end - self._start
        if held < size:
            self._buffer[:held] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, held
            most = size if and_no_more else len(self._buffer)
            while self._end < size:
                self._end += self._stream.receive_into(self._buffer[self._end : most])
        self._start += size
        return self._buffer[self._start - size : self._start]

    def take_offset(self, blob: Blob, expected: int) -> int:
        """Where the rest of a blob begins: where we expect it."""
        return format.decode_offset(self.take(format.OFFSET_BYTES), blob, expected)

    def take_file(
        self, fd: int, offset: int, size: int, progress: Progress, resumable: ResumableIncoming | None
    ) -> None:
        """The rest of a file of ``size`` bytes, from an offset on."""

        def landed(moved: int) -> None:
            nonlocal offset
            offset += moved
            if resumable is not None and (offset == size or offset - resumable.offset >= _HASHED_AT_ONCE):
                resumable.landed(offset)
            progress(moved)

        try:
            while offset < size:
                if self._start == self._end and size - offset >= _LARGE:
                    self._stream.receive_file(fd, offset, size - offset, landed)
                    return
                part = self._some(size - offset)
                write_fully(fd, part, offset)
                landed(len(part))
        except StreamBroken:
            if resumable is not None:
                resumable.landed(offset)
            raise

    def skip(self, size: int) -> None:
        """Past content that nobody wants."""
        while size > 0:
            size -= len(self._some(size))

    def _some(self, most: int) -> memoryview:
        if self._start == self._end:
            self._start, self._end = 0, self._stream.receive_into(self._buffer)
        start = self._start
        self._start = min(self._end, start + most)
        return self._buffer[start : self._start]
