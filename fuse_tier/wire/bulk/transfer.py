"""Blobs over a stream: from a source on one end into a sink on the other, in an order both know.

Runs in threads. Small files share buffers of 256 KiB on both ends, so that ten thousand of them are not ten
thousand packets; large ones never pass through this process's memory where the stream is in the clear.
Invariant: whatever arrives is either accepted by the sink, which hashes it, or discarded; and memory does not
grow with what the other side sends.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from fuse_tier.blobs import Blob, Progress, Sink, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, TierError
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Outcome
from fuse_tier.wire.bulk.streams import Stream, write_fully

_BUFFER_BYTES = 256 << 10
_SMALL = 64 << 10  # files up to this size share a sender's buffer
_LARGE = 1 << 20  # what is left of a file from this size on bypasses a receiver's buffer
_SLOWEST_SILENCE = 200e6  # bytes a second: touching memory that the host of a VM has not backed yet, then hashing


def patience_for(blobs: Sequence[Blob]) -> float:
    """Seconds without a byte after which a stream has stalled: a receiver is silent while it allocates and hashes."""
    return Deadline.BULK_STALL + max((blob.size for blob in blobs), default=0) / _SLOWEST_SILENCE


@dataclass(slots=True)
class Receipt:
    """What came of a transfer so far: a blob that is in neither was not come to."""

    arrived: set[Blob] = field(default_factory=set)
    failed: dict[Blob, TierError] = field(default_factory=dict)
    torn: set[Blob] = field(default_factory=set)  # failed, and worth another try: see local.py, copy_blob


def transmit(stream: Stream, blobs: Sequence[Blob], source: Source, progress: Progress) -> dict[Blob, TierError]:
    """Sends the blobs in order; gives those that the source could not produce. Raises StreamBroken.

    A file that has become shorter is filled up with zeros: it is the receiver who finds that it is not the blob.
    """
    failed: dict[Blob, TierError] = {}
    outgoing = _Outgoing(stream)
    for blob in blobs:
        try:
            fd = source.open(blob)
        except TierError as error:
            failed[blob] = error
            outgoing.add(format.encode_header(blob, format.outcome_of(error)))
            continue
        try:
            outgoing.add(format.encode_header(blob, Outcome.OK))
            if blob.size <= _SMALL:
                outgoing.add_file(fd, blob.size)
                progress(blob.size)
            else:
                outgoing.flush()
                stream.send_file(fd, blob.size, progress)
        finally:
            os.close(fd)
    outgoing.flush()
    return failed


def receive(stream: Stream, blobs: Sequence[Blob], sink: Sink, progress: Progress, receipt: Receipt) -> None:
    """Receives the blobs in order, and notes for each how it went, as it goes.

    Raises StreamBroken, InvalidRequest when something else comes, and OSError when the sink's file can not be
    written; the blob under way is discarded then.
    """
    incoming = _Incoming(stream)
    for blob in blobs:
        outcome = format.decode_header(incoming.take(format.HEADER_BYTES), blob)
        if outcome is not Outcome.OK:
            receipt.failed[blob] = format.ERRORS[outcome](f"the sender could not read {blob}: {outcome.name.lower()}")
            continue
        try:
            landing = sink.create(blob)
        except TierError as error:
            receipt.failed[blob] = error
            incoming.skip(blob.size)
            continue
        try:
            incoming.take_file(landing.fd, blob.size, progress)
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
        """A file from its start; if it is shorter, zeros go in its place."""
        place = self._buffer[self._reserve(size) : self._used]
        got = 0
        while got < size:
            step = os.preadv(fd, [place[got:]], got)
            if not step:
                place[got:] = bytes(size - got)
                return
            got += step

    def flush(self) -> None:
        """Sends what was added."""
        self._stream.send(self._buffer[: self._used])
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

    def take(self, size: int) -> memoryview:
        """Exactly so many bytes, fewer than the buffer has; valid until the next call."""
        held = self._end - self._start
        if held < size:
            self._buffer[:held] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, held
            while self._end < size:
                self._end += self._stream.receive_into(self._buffer[self._end :])
        self._start += size
        return self._buffer[self._start - size : self._start]

    def take_file(self, fd: int, size: int, progress: Progress) -> None:
        """The next ``size`` bytes, into a file from its start."""
        offset = 0
        while offset < size:
            if self._start == self._end and size - offset >= _LARGE:
                self._stream.receive_file(fd, offset, size - offset, progress)
                return
            part = self._some(size - offset)
            write_fully(fd, part, offset)
            offset += len(part)
            progress(len(part))

    def skip(self, size: int) -> None:
        """Past content that nobody wants."""
        while size:
            size -= len(self._some(size))

    def _some(self, most: int) -> memoryview:
        if self._start == self._end:
            self._start, self._end = 0, self._stream.receive_into(self._buffer)
        start = self._start
        self._start = min(self._end, start + most)
        return self._buffer[start : self._start]
