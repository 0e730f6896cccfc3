"""Packs: many small blobs in one object, each of them one ranged read away.

A pack is an ordinary ZIP archive without compression, whose entries are named as blobs are. Its directory at the
end is its index: so it needs no other object beside it, appears at once, and opens with ``unzip`` or Python's
``zipfile``. Packs are named by their content and never changed.

Pure but for reading a source: requests are made by others. Invariant: what an index says is where bytes may be;
whoever reads them hashes them.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fuse_tier.blobs import Blob, Source
from fuse_tier.errors import Damaged, InvalidRequest
from fuse_tier.hashing import hash_bytes

SMALL: Final = 256 << 10  # bytes: larger blobs are objects of their own
PACK_FROM: Final = 64  # blobs: fewer are not worth an index
_PACK_BYTES: Final = 4 << 20  # of content; a pack is held in memory while it is made
_USUAL_BYTES: Final = 3 << 20  # of content between two blobs that end a pack
_PACK_BLOBS: Final = 4096
_GAP: Final = 64 << 10  # bytes between two wanted blobs that cost less than a request of their own
INDEX_BYTES: Final = _PACK_BLOBS * 128 + 64  # an entry of the directory has 46 bytes and a name of up to 52
_KEPT_INDEXES: Final = 512  # of up to 128 KiB

# .ZIP File Format Specification 6.3.10: 4.3.16, end of central directory; 4.3.12, file header; 4.3.7, local header.
_END: Final = struct.Struct("<4s4H2LH")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL_HEADER_BYTES: Final = 30
_STORED: Final = zipfile.ZIP_STORED
_RECORD: Final = struct.Struct(">16sQQ")  # digest, size, where the content begins
_KEY_BYTES: Final = 24
_OLDEST: Final = (1980, 1, 1, 0, 0, 0)  # equal contents make equal packs


@dataclass(frozen=True, slots=True)
class Spot:
    """Where in a pack a blob's bytes are."""

    pack: Blob
    start: int


@dataclass(frozen=True, slots=True)
class Run:
    """Blobs of one pack that one request brings."""

    pack: Blob
    start: int
    length: int
    members: tuple[tuple[Blob, int], ...]  # with where each starts in the pack, in that order


def divide(blobs: Iterable[Blob]) -> Iterator[tuple[Blob, ...]]:
    """Small blobs in portions for a pack each. Equal sets are divided equally, whoever divides them.

    Of sets that are nearly equal, as those of a job's ranks are, most portions are equal: a portion ends where the
    digest of a blob says so, and not where others before it make it full, but for few.
    """
    portion: list[Blob] = []
    size = 0
    for blob in sorted(blobs):
        if portion and (size + blob.size > _PACK_BYTES or len(portion) == _PACK_BLOBS):
            yield tuple(portion)
            portion, size = [], 0
        portion.append(blob)
        size += blob.size
        if _ends_a_pack(blob):
            yield tuple(portion)
            portion, size = [], 0
    if portion:
        yield tuple(portion)


def _ends_a_pack(blob: Blob) -> bool:
    # The last bytes: sorted blobs of one pack have about the same first ones. No blob counts for less than its share
    # of a full pack, for many tiny ones make a pack full by their number.
    share = max(blob.size / _USUAL_BYTES, 4 / (3 * _PACK_BLOBS))
    return int.from_bytes(blob.digest[8:], "big") < share * (1 << 64)


def make_pack(blobs: Iterable[Blob], source: Source) -> bytes:
    """Reads blobs and packs them. Raises what the source raises, and Damaged for content that is another."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", _STORED, allowZip64=False) as pack:
        for blob in blobs:
            entry = zipfile.ZipInfo(blob.name, _OLDEST)
            entry.create_system = 3  # Unix, so that the mode below counts when people unpack it
            entry.external_attr = 0o100644 << 16
            pack.writestr(entry, _content(blob, source))
    return archive.getvalue()


def _content(blob: Blob, source: Source) -> bytes:
    with os.fdopen(source.open(blob), "rb", buffering=0) as file:
        content = file.read(blob.size + 1) or b""
    if hash_bytes(content) != blob:
        raise Damaged(f"the source holds {hash_bytes(content)} in place of {blob}")
    return content


@dataclass(frozen=True, slots=True)
class PackIndex:
    """What one pack holds. 32 bytes a blob: a node may know of a million."""

    pack: Blob
    records: bytes

    @classmethod
    def parse(cls, pack: Blob, tail: bytes | bytearray) -> PackIndex:
        """Reads the last bytes of a pack. Raises Damaged."""
        try:
            signature, *_, count, directory_bytes, directory_start, comment = _END.unpack(tail[-_END.size :])
            directory_end = pack.size - _END.size
            if signature != b"PK\x05\x06" or comment or directory_start + directory_bytes != directory_end:
                raise Damaged(f"pack {pack} has no directory at its end")
            directory = bytes(tail[-_END.size - directory_bytes : -_END.size])
            records = b"".join(_records(directory, count, directory_start))
        except (struct.error, InvalidRequest, UnicodeDecodeError) as error:
            raise Damaged(f"the directory of pack {pack} cannot be read: {error}") from error
        return cls(pack, records)

    @property
    def blobs(self) -> Iterator[Blob]:
        """Everything in the pack."""
        return (Blob(digest, size) for digest, size, _ in _RECORD.iter_unpack(self.records))

    def find(self, wanted: Collection[Blob]) -> dict[Blob, Spot]:
        """Which of these it holds, and where."""
        return self.find_by_key({_key(blob): blob for blob in wanted})

    def find_by_key(self, wanted: dict[bytes, Blob]) -> dict[Blob, Spot]:
        """The same, for many indexes in a row."""
        records, found = self.records, {}
        for at in range(0, len(records), _RECORD.size):
            blob = wanted.get(records[at : at + _KEY_BYTES])
            if blob is not None:
                start = int.from_bytes(records[at + _KEY_BYTES : at + _RECORD.size], "big")
                found[blob] = Spot(self.pack, start)
        return found


def _key(blob: Blob) -> bytes:
    return blob.digest + blob.size.to_bytes(8, "big")


def _records(directory: bytes, count: int, content_end: int) -> Iterator[bytes]:
    at = 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(directory, at)
        signature, method, size = fields[0], fields[4], fields[9]
        name_bytes, extra_bytes, comment_bytes, local_header = fields[10], fields[11], fields[12], fields[16]
        name = directory[at + _ENTRY.size : at + _ENTRY.size + name_bytes]
        blob = Blob.parse(name.decode("ascii"))
        start = local_header + _LOCAL_HEADER_BYTES + name_bytes  # we write no extra fields there
        if signature != b"PK\x01\x02" or method != _STORED or size != blob.size or start + size > content_end:
            raise InvalidRequest(f"its entry {name!r} is none of ours")
        yield _RECORD.pack(blob.digest, blob.size, start)
        at += _ENTRY.size + name_bytes + extra_bytes + comment_bytes


class Shelf:
    """The indexes that this process has read, the latest ones at most. One thread at a time."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[Blob, PackIndex] = OrderedDict()

    def __contains__(self, pack: Blob) -> bool:
        return pack in self._indexes

    def add(self, index: PackIndex) -> None:
        """Keeps an index, and gives up the one that was added first when there are too many."""
        self._indexes[index.pack] = index
        if len(self._indexes) > _KEPT_INDEXES:
            self._indexes.popitem(last=False)

    def keep_only(self, packs: Collection[Blob]) -> None:
        """Forgets packs that are not in the bucket any more."""
        for gone in [pack for pack in self._indexes if pack not in packs]:
            del self._indexes[gone]

    def find(self, wanted: Collection[Blob]) -> dict[Blob, Spot]:
        """Where these are, as far as is known."""
        found: dict[Blob, Spot] = {}
        by_key = {_key(blob): blob for blob in wanted}
        for index in self._indexes.values():
            found.update(index.find_by_key(by_key))
        return found


def plan_runs(spots: dict[Blob, Spot]) -> list[Run]:
    """What to request, so that neighbours come together and no run is larger than a pack."""
    runs: list[Run] = []
    members: list[tuple[Blob, int]] = []

    def close() -> None:
        last, last_start = members[-1]
        start = members[0][1]
        runs.append(Run(spots[last].pack, start, last_start + last.size - start, tuple(members)))
        members.clear()

    for blob, spot in sorted(spots.items(), key=lambda item: (item[1].pack, item[1].start)):
        if members:
            last, last_start = members[-1]
            far = spot.start - last_start - last.size > _GAP
            large = spot.start + blob.size - members[0][1] > _PACK_BYTES
            if spots[last].pack != spot.pack or far or large:
                close()
        members.append((blob, spot.start))
    if members:
        close()
    return runs
