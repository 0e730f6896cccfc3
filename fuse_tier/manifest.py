"""The state of a volume's whole tree at one instant, and its strict text form.

A manifest is what every tier lists and restores. Its text is JSON lines, so that a person or a script of
twenty lines can read it:

* the first line is a header: format, identity, number, run, owner, world size, topology, node, time;
* then one line an entry, in the order of their paths (bytewise), the root first with an empty path;
* the last line holds the xxh3-128 of all bytes before it, so a truncated text is seen as such.

Paths, link targets and attribute names are bytes on Linux: they are written as percent-encoded ASCII.
``decode`` believes nothing: any text that ``encode`` would not have written is refused whole.
"""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import xxhash

from fuse_tier.blobs import Blob
from fuse_tier.errors import ConfigError, InvalidRequest, MalformedManifest
from fuse_tier.identity import Identity, SnapshotId, is_name

FORMAT = 1
MAX_ENCODED_BYTES = 256 << 20  # a tree of about a million files
_SAFE = "!$&'()*+,/:;=@[]{}#^| ~"  # readable in JSON and in a terminal; never '%', '"' or '\\'
_MAX_NAME = 255  # linux/limits.h, NAME_MAX
_MAX_TARGET = 4095  # linux/limits.h, PATH_MAX without its NUL
_MAX_TEXT = 253


class Kind(enum.StrEnum):
    """What an entry is. Devices and sockets are never part of a snapshot."""

    DIRECTORY = "d"
    FILE = "f"
    SYMLINK = "l"
    FIFO = "p"
    HARDLINK = "h"  # a further name of a file that comes earlier in the manifest


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the tree. ``path`` is relative, without ``.`` or ``..``; the root's is empty."""

    path: bytes
    kind: Kind
    mode: int = 0  # permission, setuid, setgid and sticky bits
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    blob: Blob | None = None  # files only
    target: bytes | None = None  # of a symlink: its text; of a hard link: the path of the first name
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # user.* without ours, by name


@dataclass(frozen=True, slots=True)
class Lineage:
    """What tells whether a snapshot belongs to the job that asks for it (architecture.md, 'run')."""

    run: str
    owner_uid: str = ""
    world_size: int = 0  # 0: not said
    topology: str = ""  # such as '3x512'; empty: not said

    def __post_init__(self) -> None:
        if not is_name(self.run):
            raise ConfigError(f"run {self.run!r} must be of letters, digits, '.', '_' and '-'")
        for what, text in (("owner uid", self.owner_uid), ("topology", self.topology)):
            if text and not is_name(text):
                raise ConfigError(f"{what} {text!r} must be of letters, digits, '.', '_' and '-'")
        if not 0 <= self.world_size < 1 << 31:
            raise ConfigError(f"world size {self.world_size} is out of range")


@dataclass(frozen=True, slots=True)
class Manifest:
    """An immutable, numbered state of one volume's tree."""

    id: SnapshotId
    lineage: Lineage
    node: str  # who took it
    created_ns: int  # UTC, since 1970; for people: order is by number
    entries: tuple[Entry, ...]

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


def quote(raw: bytes) -> str:
    """Bytes as printable ASCII; ``unquote`` is its inverse."""
    return quote_from_bytes(raw, safe=_SAFE)


def unquote(text: str) -> bytes:
    """The inverse of ``quote``. Raises MalformedManifest for a text that ``quote`` would not write."""
    raw = unquote_to_bytes(text)
    if quote(raw) != text:
        raise MalformedManifest(f"{text!r} is not in the canonical quoting")
    return raw


def encode(manifest: Manifest) -> bytes:
    """The text of a manifest. Equal manifests have equal texts."""
    lines = [_compact(_header(manifest)), *(_compact(_entry(entry)) for entry in manifest.entries)]
    body = ("\n".join(lines) + "\n").encode("ascii")
    return body + (_compact({"xxh3_128": xxhash.xxh3_128_hexdigest(body)}) + "\n").encode("ascii")


def decode(text: bytes) -> Manifest:
    """Reads a manifest from a tier that may lie. Raises MalformedManifest, and then nothing of it is used."""
    if len(text) > MAX_ENCODED_BYTES:
        raise MalformedManifest(f"the manifest is {len(text)} bytes long; at most {MAX_ENCODED_BYTES} are accepted")
    body_end = text.rfind(b"\n", 0, len(text) - 1) + 1
    body, last = text[:body_end], text[body_end:]
    expected = (_compact({"xxh3_128": xxhash.xxh3_128_hexdigest(body)}) + "\n").encode("ascii")
    if not body or last != expected:
        raise MalformedManifest("the manifest is damaged or cut short: its last line is not the hash of the others")
    try:
        lines = body.decode("ascii").splitlines()
        manifest = _decode_header(_parse(lines[0]), _decode_entries(lines[1:]))
    except MalformedManifest:
        raise
    except (ConfigError, InvalidRequest, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedManifest(f"the manifest cannot be read: {error}") from error
    if encode(manifest) != text:
        raise MalformedManifest("the manifest is not in the canonical form")
    return manifest


def validate(entries: tuple[Entry, ...]) -> None:
    """Checks that the entries are a tree that can be made below a directory, and nothing else.

    Raises MalformedManifest, naming the first path that breaks a rule.
    """
    if not entries or entries[0].path != b"" or entries[0].kind is not Kind.DIRECTORY:
        raise MalformedManifest("the first entry must be the root directory")
    directories: set[bytes] = set()
    files: set[bytes] = set()
    previous: bytes | None = None
    for entry in entries:
        shown = quote(entry.path)
        if previous is not None:
            if entry.path == previous:
                raise MalformedManifest(f"{shown!r} stands in the manifest twice")
            if entry.path < previous:
                raise MalformedManifest(f"{shown!r} is out of order")
            _check_path(entry.path, shown)
            parent = entry.path.rpartition(b"/")[0]
            if parent not in directories and parent != b"":
                raise MalformedManifest(f"{shown!r} is not in a directory of the manifest")
        previous = entry.path
        _check_fields(entry, shown, files)
        if entry.kind is Kind.DIRECTORY:
            directories.add(entry.path)
        elif entry.kind is Kind.FILE:
            files.add(entry.path)


def _check_path(path: bytes, shown: str) -> None:
    if path.startswith(b"/"):
        raise MalformedManifest(f"{shown!r} is an absolute path")
    for name in path.split(b"/"):
        if name in (b"", b".", b".."):
            raise MalformedManifest(f"{shown!r} has a component {quote(name)!r}: it could leave the volume")
        if len(name) > _MAX_NAME or b"\0" in name:
            raise MalformedManifest(f"{shown!r} has a component that is no file name")


def _check_fields(entry: Entry, shown: str, files: set[bytes]) -> None:
    if (entry.kind is Kind.FILE) != (entry.blob is not None):
        raise MalformedManifest(f"{shown!r}: content belongs to files, and every file has it")
    if (entry.kind in (Kind.SYMLINK, Kind.HARDLINK)) != (entry.target is not None):
        raise MalformedManifest(f"{shown!r}: a target belongs to links, and every link has one")
    if entry.kind is Kind.SYMLINK and entry.target is not None:
        if not 1 <= len(entry.target) <= _MAX_TARGET or b"\0" in entry.target:
            raise MalformedManifest(f"{shown!r} has a target that no symbolic link can have")
    elif entry.kind is Kind.HARDLINK and entry.target not in files:
        raise MalformedManifest(f"{shown!r} is a hard link to no earlier file of the manifest")
    if not 0 <= entry.mode <= 0o7777:
        raise MalformedManifest(f"{shown!r} has mode {entry.mode:o}: only permission bits are accepted")
    if not (0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32 and -(1 << 63) <= entry.mtime_ns < 1 << 63):
        raise MalformedManifest(f"{shown!r} has an owner or a time out of range")
    names = [name for name, _ in entry.xattrs]
    if names != sorted(set(names)):
        raise MalformedManifest(f"{shown!r} has extended attributes out of order or twice")
    for name, value in entry.xattrs:
        if not name.startswith(b"user.") or b"\0" in name or not 6 <= len(name) <= 255 or len(value) > 1 << 16:
            raise MalformedManifest(f"{shown!r} has an extended attribute that is none of a user's")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def _header(manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.lineage
    return {
        "fuse_tier_manifest": FORMAT,
        "identity": str(manifest.id.identity),
        "number": manifest.id.number,
        "run": lineage.run,
        "owner_uid": lineage.owner_uid,
        "world_size": lineage.world_size,
        "topology": lineage.topology,
        "node": manifest.node,
        "created_ns": manifest.created_ns,
        "entries": len(manifest.entries),
    }


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
    value = json.loads(line, parse_constant=_no_constant)
    if not isinstance(value, dict):
        raise MalformedManifest(f"expected an object, found {line[:80]!r}")
    return value


def _no_constant(text: str) -> object:
    raise MalformedManifest(f"{text} is no number of a manifest")


def _take(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.pop(name)
    if type(value) is not kind:  # a bool is an int to isinstance
        raise MalformedManifest(f"{name!r} must be of type {kind.__name__}")
    return value


def _decode_header(fields: dict[str, Any], entries: tuple[Entry, ...]) -> Manifest:
    version = _take(fields, "fuse_tier_manifest", int)
    if version != FORMAT:
        raise MalformedManifest(f"format {version} is not known here; this version reads format {FORMAT}")
    identity = Identity.parse(_take(fields, "identity", str))
    snapshot = SnapshotId(identity, _take(fields, "number", int))
    lineage = Lineage(
        run=_take(fields, "run", str),
        owner_uid=_take(fields, "owner_uid", str),
        world_size=_take(fields, "world_size", int),
        topology=_take(fields, "topology", str),
    )
    node = _take(fields, "node", str)
    if not is_name(node):
        raise MalformedManifest(f"{node!r} is no node name")
    created_ns = _take(fields, "created_ns", int)
    if not 0 <= created_ns < 1 << 63:
        raise MalformedManifest("the time is out of range")
    if _take(fields, "entries", int) != len(entries):
        raise MalformedManifest("the number of entries is not the one the header says")
    if fields:
        raise MalformedManifest(f"unknown key {next(iter(fields))!r} in the header")
    validate(entries)
    return Manifest(snapshot, lineage, node, created_ns, entries)


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
