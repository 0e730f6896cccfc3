"""How the beginnings of blobs travel in ``control.proto``. Parsing is strict: InvalidRequest for what is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fuse_tier.blobs import Blob, Partial
from fuse_tier.errors import InvalidRequest
from fuse_tier.wire import control_pb2 as pb


def partials_to_wire(blobs: Sequence[Blob], partial_of: Callable[[Blob], Partial | None]) -> list[pb.Partial]:
    """The beginnings that there are of a list's blobs."""
    found = ((index, partial_of(blob)) for index, blob in enumerate(blobs))
    return [pb.Partial(index=index, size=begun.size, digest=begun.digest) for index, begun in found if begun]


def partials_from_wire(blobs: Sequence[Blob], messages: Iterable[pb.Partial]) -> Mapping[Blob, Partial]:
    """Raises InvalidRequest."""
    found: dict[Blob, Partial] = {}
    for message in messages:
        blob = blob_at(blobs, message.index)
        if not 0 < message.size < blob.size or len(message.digest) != len(blob.digest):
            raise InvalidRequest(f"{message.size} bytes are no beginning of {blob}")
        found[blob] = Partial(message.size, message.digest)
    return found


def blob_at(blobs: Sequence[Blob], index: int) -> Blob:
    """The blob that a message names by its place in a list. Raises InvalidRequest."""
    if index >= len(blobs):
        raise InvalidRequest(f"blob {index} is named, of a list of {len(blobs)}")
    return blobs[index]
