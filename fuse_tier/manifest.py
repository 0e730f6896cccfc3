"""The state of a volume's whole tree at one instant, and its strict text form.

A manifest is what every tier lists and restores. Its text is JSON lines, so that a person or a script of
twenty lines can read it:

* the first line is a header: format, identity, number, run, owner, world size, topology, node, time, and where there
  are any, the job's own pattern for steps, and which older steps the tree has;
* then one line an entry, in the order of their paths (bytewise), the root first with an empty path;
* the last line holds the xxh3-128 of all bytes before it, so a truncated text is seen as such.

Paths, link targets and attribute names are bytes on Linux: they are written as percent-encoded ASCII.
``decode`` believes nothing: any text that ``encode`` would not have written is refused whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import xxhash

from fuse_tier.blobs import Blob
from fuse_tier.entries import Entry, Kind, quote, unquote, validate
from fuse_tier.errors import ConfigError, InvalidRequest, MalformedManifest
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.stepnames import check_pattern

__all__ = ["Entry", "Kind", "Lineage", "Manifest", "decode", "encode", "quote", "unquote", "validate"]

FORMAT = 1
MAX_ENCODED_BYTES = 256 << 20  # a tree of about a million files


@dataclass(frozen=True, slots=True)
class Lineage:
    """What tells whether a snapshot belongs to the job that asks for it (architecture.md, 'run')."""

    run: str
    owner_uid: str = ""
    world_size: int = 0  # 0: not said
    topology: str = ""  # such as '3x512'; empty: not said
    groups: int = 0  # of replicas that were declared to hold the same state, part for part; 0: nobody did
    part: int = 0  # of that state, in this volume
    step_pattern: str = ""  # how the job names its steps (stepnames.py); empty: as frameworks do

    def __post_init__(self) -> None:
        if not is_name(self.run):
            raise ConfigError(f"run {self.run!r} must be of letters, digits, '.', '_' and '-'")
        for what, text in (("owner uid", self.owner_uid), ("topology", self.topology)):
            if text and not is_name(text):
                raise ConfigError(f"{what} {text!r} must be of letters, digits, '.', '_' and '-'")
        if not 0 <= self.world_size < 1 << 31:
            raise ConfigError(f"world size {self.world_size} is out of range")
        if self.step_pattern:
            check_pattern(self.step_pattern)
        if not self.groups and not self.part:
            return
        is_shared = self.groups > 1 and self.world_size % self.groups == 0
        if not is_shared or not 0 <= self.part < self.world_size // self.groups:
            raise ConfigError(f"part {self.part} of {self.world_size} ranks in {self.groups} groups: there is none")

    def as_declared(self, before: Lineage | None) -> Lineage:
        """The same, of who mounts files: nobody knows yet what the job declares now, so they are what they were."""
        if before is None or (before.run, before.world_size) != (self.run, self.world_size):
            return self
        return replace(self, groups=before.groups, part=before.part)

    def sharing(self, groups: int, rank: int) -> Lineage:
        """The same, of a rank that says that the ranks are that many groups which hold the same state."""
        if groups < 2 or self.world_size % groups:
            return replace(self, groups=0, part=0)
        return replace(self, groups=groups, part=rank % (self.world_size // groups))


@dataclass(frozen=True, slots=True)
class Manifest:
    """An immutable, numbered state of one volume's tree."""

    id: SnapshotId
    lineage: Lineage
    node: str  # who took it
    created_ns: int  # UTC, since 1970; for people: order is by number
    entries: tuple[Entry, ...]
    older_steps: tuple[int, ...] = ()  # below its newest, of which it has all that they had as newest (several.py)

    @property
    def blobs(self) -> frozenset[Blob]:
        """Everything that must be there before this may be committed."""
        return frozenset(entry.blob for entry in self.entries if entry.blob is not None)

    @property
    def size(self) -> int:
        """Bytes of all files, each counted as often as it stands in the tree (hard links once)."""
        return sum(entry.blob.size for entry in self.entries if entry.blob is not None)

    @property
    def created(self) -> str:
        """The time in UTC, ``2026-01-31T12:00:00Z``."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created_ns / 1e9))


def encode(manifest: Manifest) -> bytes:
    """The text of a manifest. Equal manifests have equal texts.

    Raises MalformedManifest for one that ``decode`` would refuse.
    """
    _check(manifest)
    text = _write(manifest)
    _check_length(text)
    return text


def _write(manifest: Manifest) -> bytes:
    lines = [_compact(_header(manifest)), *(_compact(_entry(entry)) for entry in manifest.entries)]
    body = ("\n".join(lines) + "\n").encode("ascii")
    return body + (_compact({"xxh3_128": xxhash.xxh3_128_hexdigest(body)}) + "\n").encode("ascii")


def decode(text: bytes) -> Manifest:
    """Reads a manifest from a tier that may lie. Raises MalformedManifest, and then nothing of it is used."""
    _check_length(text)
    body_end = text.rfind(b"\n", 0, len(text) - 1) + 1
    body, last = text[:body_end], text[body_end:]
    expected = (_compact({"xxh3_128": xxhash.xxh3_128_hexdigest(body)}) + "\n").encode("ascii")
    if not body or last != expected:
        _refuse_newer(text)  # whose last line may be another
        raise MalformedManifest("the manifest is damaged or cut short: its last line is not the hash of the others")
    try:
        lines = body.decode("ascii").splitlines()
        manifest = _decode_header(_parse(lines[0]), _decode_entries(lines[1:]))
    except MalformedManifest:
        raise
    except (ConfigError, InvalidRequest, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedManifest(f"the manifest cannot be read: {error}") from error
    if _write(manifest) != text:
        raise MalformedManifest("the manifest is not in the canonical form")
    return manifest


def _refuse_newer(text: bytes) -> None:
    try:
        version = json.loads(text.partition(b"\n")[0])["fuse_tier_manifest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if type(version) is int:
        _check_version(version)


def _check_version(version: int) -> None:
    if version > FORMAT:
        raise MalformedManifest(
            f"it was written by a newer version (format {version}; this version reads {FORMAT}): update this node"
        )


def _check_length(text: bytes) -> None:
    if len(text) > MAX_ENCODED_BYTES:
        raise MalformedManifest(f"the manifest is {len(text)} bytes long; at most {MAX_ENCODED_BYTES} are accepted")


def _check(manifest: Manifest) -> None:
    if not is_name(manifest.node):
        raise MalformedManifest(f"{manifest.node!r} is no node name")
    if not 0 <= manifest.created_ns < 1 << 63:
        raise MalformedManifest("the time is out of range")
    if any(type(step) is not int or step < 0 for step in manifest.older_steps):
        raise MalformedManifest("an older step is no number")
    if any(one >= next_one for one, next_one in pairwise(manifest.older_steps)):
        raise MalformedManifest("the older steps are not in ascending order")
    validate(manifest.entries)


_compact = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def _header(manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.lineage
    shared = {"groups": lineage.groups, "part": lineage.part} if lineage.groups else {}
    fields: dict[str, Any] = {
        "fuse_tier_manifest": FORMAT,
        "identity": str(manifest.id.identity),
        "number": manifest.id.number,
        "run": lineage.run,
        "owner_uid": lineage.owner_uid,
        "world_size": lineage.world_size,
        "topology": lineage.topology,
        **shared,
        "node": manifest.node,
        "created_ns": manifest.created_ns,
        "entries": len(manifest.entries),
    }
    if lineage.step_pattern:
        fields["step_pattern"] = lineage.step_pattern
    if manifest.older_steps:
        fields["older_steps"] = list(manifest.older_steps)
    return fields


def _entry(entry: Entry) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": quote(entry.path), "kind": entry.kind.value}
    if entry.kind is not Kind.HARDLINK:  # a hard link shares everything with its first name
        fields |= {"mode": entry.mode, "uid": entry.uid, "gid": entry.gid, "mtime_ns": entry.mtime_ns}
    if entry.blob is not None:
        fields |= {"size": entry.blob.size, "xxh3_128": entry.blob.digest.hex()}
    if entry.target is not None:
        fields["target"] = quote(entry.target)
    if entry.xattrs:
        fields["xattrs"] = {quote(name): quote(value) for name, value in entry.xattrs}
    return fields


def _parse(line: str) -> dict[str, Any]:
    value = _parser.decode(line)
    if not isinstance(value, dict):
        raise MalformedManifest(f"expected an object, found {line[:80]!r}")
    return value


def _no_constant(text: str) -> object:
    raise MalformedManifest(f"{text} is no number of a manifest")


_parser = json.JSONDecoder(parse_constant=_no_constant)


def _take(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.pop(name)
    if type(value) is not kind:  # a bool is an int to isinstance
        raise MalformedManifest(f"{name!r} must be of type {kind.__name__}")
    return value


def _decode_header(fields: dict[str, Any], entries: tuple[Entry, ...]) -> Manifest:
    version = _take(fields, "fuse_tier_manifest", int)
    _check_version(version)
    if version != FORMAT:
        raise MalformedManifest(f"format {version} is not known here; this version reads format {FORMAT}")
    identity = Identity.parse(_take(fields, "identity", str))
    snapshot = SnapshotId(identity, _take(fields, "number", int))
    lineage = Lineage(
        run=_take(fields, "run", str),
        owner_uid=_take(fields, "owner_uid", str),
        world_size=_take(fields, "world_size", int),
        topology=_take(fields, "topology", str),
        groups=_take(fields, "groups", int) if "groups" in fields else 0,
        part=_take(fields, "part", int) if "part" in fields else 0,
        step_pattern=_take(fields, "step_pattern", str) if "step_pattern" in fields else "",
    )
    older_steps = tuple(_take(fields, "older_steps", list)) if "older_steps" in fields else ()
    node = _take(fields, "node", str)
    created_ns = _take(fields, "created_ns", int)
    if _take(fields, "entries", int) != len(entries):
        raise MalformedManifest("the number of entries is not the one the header says")
    if fields:
        raise MalformedManifest(f"unknown key {next(iter(fields))!r} in the header")
    manifest = Manifest(snapshot, lineage, node, created_ns, entries, older_steps)
    _check(manifest)
    return manifest


def _decode_entries(lines: list[str]) -> tuple[Entry, ...]:
    return tuple(_decode_entries_lazily(lines))


def _decode_entries_lazily(lines: list[str]) -> Iterator[Entry]:
    for line in lines:
        fields = _parse(line)
        path = unquote(_take(fields, "path", str))
        text = _take(fields, "kind", str)
        try:
            kind = Kind(text)
        except ValueError as error:
            raise MalformedManifest(
                f"{quote(path)!r} is of kind {text!r}: only directories, files, links and fifos are accepted"
            ) from error
        common = {}
        if kind is not Kind.HARDLINK:
            common = {name: _take(fields, name, int) for name in ("mode", "uid", "gid", "mtime_ns")}
        blob = None
        if "xxh3_128" in fields:
            size = _take(fields, "size", int)
            blob = Blob(bytes.fromhex(_take(fields, "xxh3_128", str)), size)
        target = unquote(_take(fields, "target", str)) if "target" in fields else None
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if "xattrs" in fields:
            xattrs = tuple(
                (unquote(name), unquote(_take({"value": value}, "value", str)))
                for name, value in _take(fields, "xattrs", dict).items()
            )
        if fields:
            raise MalformedManifest(f"{quote(path)!r} has an unknown key {next(iter(fields))!r}")
        yield Entry(path, kind, blob=blob, target=target, xattrs=xattrs, **common)
