"""What stands where in a bucket: the names of ``docs/bucket-layout.md``, and their strict readings.

Pure: nothing here talks to a bucket. Names found there come from anybody; one that is not exactly what we
would have written is none of ours, and is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fuse_tier.blobs import Blob
from fuse_tier.checkpoints import Job
from fuse_tier.errors import ConfigError, InvalidRequest, TierRefused
from fuse_tier.identity import Identity, SnapshotId

FORMAT: Final = 1
MARKER: Final = "fuse-tier.json"
BLOBS: Final = "blobs/"
PACKS: Final = "packs/"
MANIFESTS: Final = "manifests/"
PARTS: Final = "parts/"
CLAIMS: Final = "claims/"
DOCUMENTS: Final = "checkpoints/"
PACKS_METADATA: Final = "fuse-tier-packs"

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_LONGEST_PREFIX: Final = 512  # bytes; an object's name has at most 1024, and a manifest's own part up to 800
_WILDCARDS: Final = frozenset("*?[]#")  # gcloud storage would not take them for themselves
_NUMBER_DIGITS: Final = 19  # of 2**63 - 1: names sort as numbers do
_MANIFEST_END: Final = ".manifest"
_PACK_END: Final = ".zip"
_LONGEST_METADATA: Final = 6000  # cloud.google.com/storage/quotas: 8 KiB for all that is custom
_PART: Final = re.compile(rf"{PARTS}[0-9a-f]{{32}}-[0-9]{{1,19}}/[0-9]{{{_NUMBER_DIGITS}}}-[0-9]{{{_NUMBER_DIGITS}}}")
_CLAIM: Final = re.compile(rf"{CLAIMS}[0-9a-f]{{32}}-[0-9]{{1,19}}")
_DOCUMENT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,800}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A bucket and where in it ours begins."""

    bucket: str
    prefix: str  # ends with a slash unless it is empty

    @classmethod
    def parse(cls, url: str) -> BucketPlace:
        """Reads ``gs://BUCKET`` or ``gs://BUCKET/PREFIX``. Raises ConfigError."""
        name, _, prefix = url.removeprefix("gs://").partition("/")
        if not url.startswith("gs://") or not _BUCKET.fullmatch(name):
            raise ConfigError(f"{url!r} is no bucket: write gs://BUCKET or gs://BUCKET/PREFIX")
        prefix = prefix.rstrip("/")
        for part in prefix.split("/") if prefix else ():
            if part in ("", ".", "..") or not part.isprintable() or _WILDCARDS.intersection(part):
                raise ConfigError(
                    f"{url!r} has a part {part!r} that ordinary tools could not copy: use printable characters other "
                    "than '*', '?', '[', ']' and '#', and no '.' or '..'"
                )
        if len(prefix.encode()) > _LONGEST_PREFIX:
            raise ConfigError(f"{url!r} has a prefix of more than {_LONGEST_PREFIX} bytes")
        return cls(name, f"{prefix}/" if prefix else "")

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")


def marker_text() -> bytes:
    """What the marker of this layout says."""
    about = "Checkpoints kept by fuse-tier. Every object below is described in docs/bucket-layout.md of its source."
    return (json.dumps({"fuse_tier_bucket": FORMAT, "about": about}) + "\n").encode()


def check_marker(text: bytes, place: str) -> None:
    """Raises TierRefused unless we can read and write what a bucket with this marker holds."""
    try:
        found = json.loads(text)["fuse_tier_bucket"]
    except (ValueError, KeyError, TypeError):
        found = None
    if type(found) is not int or found < 1:
        raise TierRefused(f"{place}/{MARKER} is none of ours: choose another prefix in `bucket.url`")
    if found > FORMAT:
        raise TierRefused(
            f"{place} was written by a newer version (layout {found}; this version knows {FORMAT}): "
            "update this node, or choose another prefix in `bucket.url`"
        )


def blob_object(blob: Blob) -> str:
    """Where a blob stands that is an object of its own."""
    return f"{BLOBS}{blob.digest[:1].hex()}/{blob.name}"


def blob_of(name: str) -> Blob | None:
    """The inverse of ``blob_object``; None for what is none of ours."""
    return _exactly(name.rpartition("/")[2], name, blob_object)


def pack_object(content: Blob) -> str:
    """Where a pack stands; it is named by its own content."""
    return f"{PACKS}{content.name}{_PACK_END}"


def pack_of(name: str) -> Blob | None:
    """The inverse of ``pack_object``; None for what is none of ours."""
    return _exactly(name.rpartition("/")[2].removesuffix(_PACK_END), name, pack_object)


def parts_folder(blob: Blob) -> str:
    """What the names of a blob's parts begin with, while it is uploaded in parts."""
    return f"{PARTS}{blob.name}/"


def part_object(blob: Blob, start: int, end: int) -> str:
    """Where a part of a blob stands until the blob does, by the bytes that it has."""
    return f"{parts_folder(blob)}{start:0{_NUMBER_DIGITS}d}-{end:0{_NUMBER_DIGITS}d}"


def whole_of_part(name: str) -> str | None:
    """The name of the blob of which an object is a part; None for what is no part."""
    return name.split("/")[1] if _PART.fullmatch(name) else None


def claim_object(content: Blob) -> str:
    """Where it is said that somebody uploads a blob or a pack."""
    return f"{CLAIMS}{content.name}"


def is_collectable(name: str) -> bool:
    """Whether an object is one that may become garbage: nothing else is ever collected."""
    return bool(blob_of(name) or pack_of(name) or _PART.fullmatch(name) or _CLAIM.fullmatch(name))


def document_object(name: str) -> str:
    """Where a document stands: a small text beside the manifests. Raises InvalidRequest for a name that is none."""
    if not _DOCUMENT.fullmatch(name) or ".." in name:
        raise InvalidRequest(f"{name!r} is no name of a document: use letters, digits, '.', '_', '-' and '/'")
    return f"{DOCUMENTS}{name}"


def packs_text(packs: Iterable[Blob]) -> str:
    """What a manifest's metadata says of the packs that its small contents are in; not more than fits there."""
    names: list[str] = []
    for pack in sorted(packs):
        if sum(len(name) + 1 for name in names) + len(pack.name) > _LONGEST_METADATA:
            break
        names.append(pack.name)
    return ",".join(names)


def packs_in(text: str) -> tuple[Blob, ...]:
    """The inverse of ``packs_text``; without what is none of ours."""
    found = (pack_of(f"{PACKS}{name}{_PACK_END}") for name in text.split(","))
    return tuple(pack for pack in found if pack is not None)


def manifest_object(snapshot: SnapshotId) -> str:
    """Where a manifest stands."""
    return f"{MANIFESTS}{snapshot.identity}/{snapshot.number:0{_NUMBER_DIGITS}d}{_MANIFEST_END}"


def manifest_folder(identity: Identity | None) -> str:
    """What the names of one volume's manifests begin with, or of all volumes'."""
    return f"{MANIFESTS}{identity}/" if identity else MANIFESTS


def job_folder(job: Job) -> str:
    """What the names of the manifests of all volumes of a job begin with."""
    return f"{MANIFESTS}{job}/"


def snapshot_of(name: str) -> SnapshotId | None:
    """The inverse of ``manifest_object``; None for what is none of ours."""
    identity, _, number = name.removeprefix(MANIFESTS).removesuffix(_MANIFEST_END).rpartition("/")
    if not number.isascii() or not number.isdigit():
        return None
    try:
        snapshot = SnapshotId(Identity.parse(identity), int(number))
    except ConfigError:
        return None
    return snapshot if manifest_object(snapshot) == name else None


def _exactly(text: str, name: str, write: Callable[[Blob], str]) -> Blob | None:
    try:
        blob = Blob.parse(text)
    except InvalidRequest:
        return None
    return blob if write(blob) == name else None
