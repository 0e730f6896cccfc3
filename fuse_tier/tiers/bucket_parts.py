"""Large content up in parts: several at a time, and what arrived need not be sent again.

Each part is an object for a while (``parts/<blob>/<first byte>-<end>``); Cloud Storage composes them when all are
there. Its bytes are read once, in order, hashed on their way, and held in memory until they have arrived; only what
has the right hash is composed under the blob's name. A part that is there already, from an attempt that was cut or
from another node, is used when its checksum is the right one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fuse_tier.blobs import Blob, Source
from fuse_tier.errors import Damaged, NotFound, TierUnavailable
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.bucket_checksums import crc32c_text
from fuse_tier.tiers.bucket_content import Reader
from fuse_tier.tiers.bucket_layout import blob_object, part_object, parts_folder
from fuse_tier.tiers.bucket_listing import list_all
from fuse_tier.tiers.bucket_many import Removable, remove
from fuse_tier.tiers.bucket_objects import Objects, Stored, is_copy
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_upload import Told, upload
from fuse_tier.tiers.bucket_work import Work

PART: Final = 16 << 20  # bytes
SPLIT_FROM: Final = 4 * PART  # smaller content is not worth the further requests
_BUFFERS: Final = 4  # parts in memory, of all uploads together
_COMPOSED: Final = 32  # cloud.google.com/storage/docs/composite-objects: sources of one request


def to_split(blobs: Sequence[Blob], parallel: int) -> set[Blob]:
    """Which of the blobs to upload go in parts: those that would still be on their way alone when all others
    have arrived, with so many requests at a time.
    """
    share = sum(blob.size for blob in blobs) / parallel
    return {blob for blob in blobs if blob.size >= SPLIT_FROM and blob.size > share}


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a blob that is, or will be, an object."""

    start: int
    end: int


def levels(size: int) -> Iterator[list[tuple[Piece, list[Piece]]]]:
    """How the parts of so many bytes become one, level by level: each a piece and those that it is composed of."""
    pieces = [Piece(start, min(start + PART, size)) for start in range(0, size, PART)]
    while len(pieces) > _COMPOSED:
        groups = [pieces[at : at + _COMPOSED] for at in range(0, len(pieces), _COMPOSED)]
        pieces = [Piece(group[0].start, group[-1].end) for group in groups]
        yield [(piece, group) for piece, group in zip(pieces, groups, strict=True) if len(group) > 1]
    yield [(Piece(0, size), pieces)]


class PartsUpload:
    """Uploads in parts."""

    def __init__(self, objects: Objects, work: Work) -> None:
        self._objects = objects
        self._work = work
        self._buffers = trio.CapacityLimiter(_BUFFERS)

    async def upload(self, blob: Blob, source: Source, told: Told) -> Stored:
        """Makes the blob an object. Raises what the source raises, and Damaged."""
        try:
            return await self._attempt(blob, source, told)
        except Damaged:
            return await self._attempt(blob, source, told)  # a job may have written to it meanwhile (``Source.open``)

    async def _attempt(self, blob: Blob, source: Source, told: Told) -> Stored:
        opened: list[int] = []  # what a thread opens is ours, though nobody may wait for it any more
        try:
            await self._work.run(lambda _: opened.append(source.open(blob)))
            reader = Reader(opened[0], blob)
            parts = await self._upload_parts(blob, reader, told)
            await self._work.run(lambda _: reader.check())
        finally:
            for fd in opened:
                os.close(fd)
        return await self._work.run(lambda task: self._compose(blob, crc32c_text(reader.crc32c), parts, task))

    async def _upload_parts(self, blob: Blob, reader: Reader, told: Told) -> dict[Piece, Stored]:
        there = await self._work.run(lambda task: self._list(blob, task))
        in_order = trio.Lock()
        parts: dict[Piece, Stored] = {}
        arrived = 0

        async def take_one(_: int) -> None:
            nonlocal arrived
            async with self._buffers:
                async with in_order:
                    start = reader.done
                    content = await self._work.run(lambda _: reader.part(PART))
                piece = Piece(start, start + content.size)
                name = part_object(blob, piece.start, piece.end)
                stored = there.get(name)
                if stored is None or not is_copy(stored, content):
                    replacing = 0 if stored is None else stored.generation
                    stored = await self._work.run(
                        lambda task: upload(self._objects, name, content, no_progress, task, replacing=replacing)
                    )
                parts[piece] = stored
                arrived += content.size
                told(arrived)

        await self._work.each(range(0, blob.size, PART), take_one)
        return parts

    def _list(self, blob: Blob, task: Task) -> dict[str, Stored]:
        return {stored.name: stored for stored in list_all(self._objects, parts_folder(blob), task)}

    def _compose(self, blob: Blob, crc32c: str, pieces: dict[Piece, Stored], task: Task) -> Stored:
        *lower, [(_, last)] = levels(blob.size)
        for level in lower:
            for piece, group in level:
                name = part_object(blob, piece.start, piece.end)
                pieces[piece] = self._compose_one(name, [pieces[one] for one in group], task)
        made = self._compose_one(blob_object(blob), [pieces[one] for one in last], task)
        if (made.size, made.crc32c) != (blob.size, crc32c):
            self._objects.delete(made)
            raise TierUnavailable(f"{made.name} was composed of damaged parts, and was removed")
        parts = [Removable(one.name, one.size, one.generation) for one in pieces.values()]
        remove(self._objects, parts, task)
        return made

    def _compose_one(self, name: str, sources: Sequence[Stored], task: Task) -> Stored:
        try:
            made = task.retry(lambda: self._objects.compose(name, sources, task.stop))
        except NotFound:  # another node may have been faster, and tidied up
            made = None
        if made is None:
            made = task.retry(lambda: self._objects.head(name))
        if made is None:
            raise TierUnavailable(f"parts of {name} were removed by others: they must be sent again")
        return made
