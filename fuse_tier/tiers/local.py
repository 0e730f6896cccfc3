"""Copies blobs between two places of this machine, without their bytes passing through this process's memory.

Owns the copying loop and nothing else: places and names are the source's and the sink's business. What
arrives has been hashed by the sink, so nothing is kept that is not what its name says.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from threading import Event

from fuse_tier.blobs import Blob, Progress, Sink, Source
from fuse_tier.errors import Damaged, TierError, TierUnavailable
from fuse_tier.reading import is_lost, lost_is_damaged
from fuse_tier.tiers.base import Fetched

_STEP = 16 << 20  # bytes between two looks at `stop`: some milliseconds


class Stopped(TierUnavailable):
    """The copy was told to end. Its caller is being cancelled, so nobody gets to see this."""


def copy_blob(blob: Blob, source: Source, sink: Sink, progress: Progress, stop: Event) -> None:
    """Copies one blob. Raises what ``open``, ``create`` and ``accept`` raise, and Stopped."""
    try:
        _copy_once(blob, source, sink, progress, stop)
    except Damaged:
        # A job may have written to the file while we read it: its content then has a new file under the old
        # name (pins.py), which a second look finds. Real damage is found twice.
        _copy_once(blob, source, sink, progress, stop)


def copy_available(blobs: Collection[Blob], source: Source, sink: Sink, progress: Progress, stop: Event) -> Fetched:
    """Copies what can be copied, and says for each blob how it went. Raises Stopped only."""
    arrived: set[Blob] = set()
    failed: dict[Blob, TierError] = {}
    for blob in frozenset(blobs):
        try:
            copy_blob(blob, source, sink, progress, stop)
        except Stopped:
            raise
        except TierError as error:
            failed[blob] = error
        else:
            arrived.add(blob)
    return Fetched(frozenset(arrived), failed)


def _copy_once(blob: Blob, source: Source, sink: Sink, progress: Progress, stop: Event) -> None:
    if stop.is_set():
        raise Stopped("the copy was cancelled")
    reading = source.open(blob)
    try:
        incoming = sink.create(blob)
        try:
            left = blob.size
            while left and (moved := _move(reading, incoming.fd, min(left, _STEP))):
                left -= moved
                progress(moved)
                if stop.is_set():
                    raise Stopped("the copy was cancelled")
        except BaseException:
            incoming.discard()
            raise
        incoming.accept()
    finally:
        os.close(reading)


def _move(reading: int, writing: int, size: int) -> int:
    """Raises Damaged where the source cannot be read, OSError where the sink does not take it."""
    try:
        return os.sendfile(writing, reading, None, size)
    except OSError as error:
        if is_lost(error):
            with lost_is_damaged("content"):
                os.read(reading, 1)
        raise
