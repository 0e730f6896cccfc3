"""What a volume's tree is made of, and which trees may be made below a directory at all.

The border against manifests that lie: after ``validate`` no path leaves its root, no name stands twice, nothing
but directories, files, links and fifos is made. Nothing here reads or writes files.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fuse_tier.blobs import Blob
from fuse_tier.errors import MalformedManifest

OUR_XATTRS = b"user.fuse_tier."  # made up by the mount, never stored
_SAFE = "!$&'()*+,/:;=@[]{}#^| ~"  # readable in JSON and in a terminal; never '%', '"' or '\\'
_PLAIN = re.compile(rb"[A-Za-z0-9_.\-" + re.escape(_SAFE.encode("ascii")) + rb"]*")  # most names: a short way
_MAX_NAME = 255  # linux/limits.h, NAME_MAX
_MAX_TARGET = 4095  # linux/limits.h, PATH_MAX without its NUL
_MAX_XATTR = 1 << 16  # linux/limits.h, XATTR_SIZE_MAX


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


def quote(raw: bytes) -> str:
    """Bytes as printable ASCII; ``unquote`` is its inverse."""
    if _PLAIN.fullmatch(raw):
        return raw.decode("ascii")
    return quote_from_bytes(raw, safe=_SAFE)


def unquote(text: str) -> bytes:
    """The inverse of ``quote``. Raises MalformedManifest for a text that ``quote`` would not write."""
    raw = unquote_to_bytes(text)
    if quote(raw) != text:
        raise MalformedManifest(f"{text!r} is not in the canonical quoting")
    return raw


def validate(entries: tuple[Entry, ...]) -> None:
    """Checks that the entries are a tree that can be made below a directory, and nothing else.

    Raises MalformedManifest, naming the first path that breaks a rule.
    """
    if not entries or entries[0].path != b"" or entries[0].kind is not Kind.DIRECTORY:
        raise MalformedManifest("the first entry must be the root directory")
    directories = {b""}
    files: set[bytes] = set()
    previous: bytes | None = None
    for entry in entries:
        path = entry.path
        if previous is not None:
            if path <= previous:
                wrong = "stands in the manifest twice" if path == previous else "is out of order"
                raise MalformedManifest(f"{quote(path)!r} {wrong}")
            _check_path(path)
            if path.rpartition(b"/")[0] not in directories:
                raise MalformedManifest(f"{quote(path)!r} is not in a directory of the manifest")
        previous = path
        _check_fields(entry, files)
        if entry.kind is Kind.DIRECTORY:
            directories.add(path)
        elif entry.kind is Kind.FILE:
            files.add(path)


def _check_path(path: bytes) -> None:
    if path.startswith(b"/"):
        raise MalformedManifest(f"{quote(path)!r} is an absolute path")
    for name in path.split(b"/"):
        if name in (b"", b".", b".."):
            raise MalformedManifest(f"{quote(path)!r} has a component {quote(name)!r}: it could leave the volume")
        if len(name) > _MAX_NAME or b"\0" in name:
            raise MalformedManifest(f"{quote(path)!r} has a component that is no file name")


def _check_fields(entry: Entry, files: set[bytes]) -> None:
    wrong = _what_is_wrong(entry, files)
    if wrong is not None:
        raise MalformedManifest(f"{quote(entry.path)!r} {wrong}")


def _what_is_wrong(entry: Entry, files: set[bytes]) -> str | None:
    if (entry.kind is Kind.FILE) != (entry.blob is not None):
        return "has content and is no file, or is a file and has none"
    if (entry.kind in (Kind.SYMLINK, Kind.HARDLINK)) != (entry.target is not None):
        return "has a target and is no link, or is a link and has none"
    if entry.kind is Kind.SYMLINK and entry.target is not None:
        if not 1 <= len(entry.target) <= _MAX_TARGET or b"\0" in entry.target:
            return "has a target that no symbolic link can have"
    elif entry.kind is Kind.HARDLINK:
        if entry.target not in files:
            return "is a hard link to no earlier file of the manifest"
        if entry.mode or entry.uid or entry.gid or entry.mtime_ns or entry.xattrs:
            return "is a hard link, and has attributes that are not its first name's"
    if not 0 <= entry.mode <= 0o7777:
        return f"has mode {entry.mode:o}: only permission bits are accepted"
    if not (0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32 and -(1 << 63) <= entry.mtime_ns < 1 << 63):
        return "has an owner or a time out of range"
    return _what_is_wrong_with_xattrs(entry) if entry.xattrs else None


def _what_is_wrong_with_xattrs(entry: Entry) -> str | None:
    if entry.kind not in (Kind.FILE, Kind.DIRECTORY):
        return "has extended attributes, which only files and directories can have"
    names = [name for name, _ in entry.xattrs]
    if names != sorted(set(names)):
        return "has extended attributes out of order or twice"
    for name, value in entry.xattrs:
        if not name.startswith(b"user.") or name.startswith(OUR_XATTRS) or b"\0" in name or not 6 <= len(name) <= 255:
            return f"has an extended attribute {quote(name)!r} that is none of a user's"
        if len(value) > _MAX_XATTR:
            return f"has an extended attribute {quote(name)!r} of {len(value)} bytes"
    return None
