"""An object's content as it comes out of an HTTP answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

from fuse_tier.tiers.bucket_content import PIECE, Interrupted


@dataclass(frozen=True, slots=True)
class Reading:
    """An object's content as it comes."""

    crc32c: str | None  # of the whole object, as Cloud Storage writes it
    pieces: Iterator[bytes]


def shut_down(raw: Any) -> None:
    """Ends the wait for bytes, from another thread."""
    # Since urllib3 2.3. It has ended by itself when there is nothing to shut down any more.
    with suppress(AttributeError, RuntimeError, ValueError, OSError):
        raw.shutdown()


def pieces_of(raw: Any, stop: Event) -> Iterator[bytes]:
    """The content as it comes. Raises Interrupted when ``stop`` is set."""
    while piece := raw.read(PIECE, decode_content=False):
        if stop.is_set():
            raise Interrupted
        yield piece


def whole_size(headers: Any) -> int | None:
    """How long the object is of which this is the answer, or a part."""
    stored = headers.get("x-goog-stored-content-length", "") or headers.get("Content-Length", "")
    text = headers.get("Content-Range", "").rpartition("/")[2] or stored
    return int(text) if text.isdigit() else None
