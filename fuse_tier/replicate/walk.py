"""Reading a volume's live tree: what is there at one time, and which content has still to be hashed.

The walk pins every sealed file that it finds, so that its content cannot change unseen from then on; whether
the tree stood still while it was walked is for the caller to find out (instant.py). It runs in a thread,
never through the mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import structlog

from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError
from fuse_tier.manifest import Entry, Kind
from fuse_tier.protocolfiles import is_message
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import remote_files
from fuse_tier.ram.use import is_written

log = structlog.get_logger(__name__)

OUR_XATTRS = b"user.fuse_tier."
_NO_XATTRS = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES})


class TreeChanged(FuseTierError):
    """The tree changed while it was read: read it again."""


@dataclass(frozen=True, slots=True)
class Writers:
    """Files that are open for writing, by inode number; ``fsynced`` are those whose writers have synced since."""

    inodes: frozenset[int] = frozenset()
    fsynced: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the tree whose content is not known yet, by where its entry stands."""

    index: int
    inode: int
    path: str
    size: int
    ctime_ns: int
    copied: bool  # it has a writer, which has fsynced: its content is copied, not pinned


@dataclass(frozen=True, slots=True)
class Walk:
    """A tree's entries in their order; those named by ``unhashed`` still lack their blob."""

    entries: tuple[Entry, ...]
    unhashed: tuple[Found, ...]
    inodes: frozenset[int]  # of the regular files
    is_settled: bool  # no file is being written of which the daemon does not know


def walk_tree(volume: VolumeLayout, pins: Pins, writers: Writers, previous: Mapping[bytes, Entry]) -> Walk:
    """Reads the whole live tree.

    A file that is being written stands there as it was last sealed (``previous`` has that), and not at all if
    it never was. A file whose content is in the bucket only stands there as if it were here; one whose content no
    source could give is left out.
    Sockets and device nodes are never part of a snapshot, nor are messages between a framework and its replicator.
    Raises TreeChanged.
    """
    remote = remote_files(volume)
    found: list[tuple[bytes, os.stat_result, str]] = []
    root = os.fsencode(volume.tree)
    try:
        found.append((b"", os.lstat(root), volume.tree))
        _collect(root, b"", found)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TreeChanged(f"{error.filename!r} went away while the tree was read") from error
    found.sort(key=lambda item: item[0])
    return _describe(found, pins, writers, previous, remote)


def _collect(directory: bytes, prefix: bytes, found: list[tuple[bytes, os.stat_result, str]]) -> None:
    pending = [(directory, prefix)]
    while pending:
        directory, prefix = pending.pop()
        with os.scandir(directory) as listing:
            for item in listing:
                path = prefix + item.name
                status = item.stat(follow_symlinks=False)
                if not prefix and is_message(item.name, status):
                    continue
                found.append((path, status, os.fsdecode(item.path)))
                if item.is_dir(follow_symlinks=False):
                    pending.append((item.path, path + b"/"))


def _describe(
    found: list[tuple[bytes, os.stat_result, str]],
    pins: Pins,
    writers: Writers,
    previous: Mapping[bytes, Entry],
    remote: Mapping[int, Blob | None],
) -> Walk:
    entries: list[Entry] = []
    unhashed: list[Found] = []
    first_names: dict[int, bytes] = {}
    inodes: set[int] = set()
    is_settled = True
    for path, status, full_path in found:
        entry = _common(path, status, full_path)
        if entry is None:
            continue
        if entry.kind is Kind.FILE:
            inode = status.st_ino
            inodes.add(inode)
            if status.st_nlink > 1 and inode in first_names:
                entries.append(Entry(path, Kind.HARDLINK, target=first_names[inode]))
                continue
            known = _known(entry, status, pins, writers, previous, remote)
            if known is None and _is_left_out(inode, writers, remote):
                continue
            if known is None:
                copied = inode in writers.inodes
                if not copied and not _pin(pins, full_path, inode):
                    is_settled = False
                    if (known := _before(previous, path)) is None:
                        continue
            if known is None:
                unhashed.append(Found(len(entries), inode, full_path, status.st_size, status.st_ctime_ns, copied))
            else:
                entry = replace(entry, blob=known)
            first_names[inode] = path
        entries.append(entry)
    return Walk(tuple(entries), tuple(unhashed), frozenset(inodes), is_settled)


def _known(
    entry: Entry,
    status: os.stat_result,
    pins: Pins,
    writers: Writers,
    previous: Mapping[bytes, Entry],
    remote: Mapping[int, Blob | None],
) -> Blob | None:
    if status.st_ino in remote:
        return remote[status.st_ino]
    if status.st_ino not in writers.inodes:
        return pins.known_blob(status.st_ino)
    before = previous.get(entry.path)
    if before is None or before.kind is not Kind.FILE:
        return None
    unchanged = before.blob is not None and (before.mtime_ns, before.blob.size) == (
        status.st_mtime_ns,
        status.st_size,
    )
    if status.st_ino in writers.fsynced and not unchanged:
        return None
    return before.blob


def _is_left_out(inode: int, writers: Writers, remote: Collection[int]) -> bool:
    return inode in remote or (inode in writers.inodes and inode not in writers.fsynced)


def _before(previous: Mapping[bytes, Entry], path: bytes) -> Blob | None:
    entry = previous.get(path)
    return entry.blob if entry is not None and entry.kind is Kind.FILE else None


def _pin(pins: Pins, path: str, inode: int) -> bool:
    """False if somebody writes the file through a mapping that outlived its descriptor (ram/use.py)."""
    try:
        pins.pin(path, inode)
        if not is_written(pins.path(inode)):
            return True
        pins.unpin(inode)
        return False
    except FileNotFoundError as error:
        raise TreeChanged(f"{path!r} went away while the tree was read") from error


def _common(path: bytes, status: os.stat_result, full_path: str) -> Entry | None:
    mode = status.st_mode
    target: bytes | None = None
    if stat.S_ISREG(mode):
        kind = Kind.FILE
    elif stat.S_ISDIR(mode):
        kind = Kind.DIRECTORY
    elif stat.S_ISLNK(mode):
        kind = Kind.SYMLINK
        try:
            target = os.readlink(os.fsencode(full_path))
        except OSError as error:
            raise TreeChanged(f"{full_path!r} went away while the tree was read") from error
    elif stat.S_ISFIFO(mode):
        kind = Kind.FIFO
    else:
        log.debug("snapshot.left_out", path=full_path, mode=oct(mode))
        return None
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        target=target,
        xattrs=_xattrs(full_path) if kind in (Kind.FILE, Kind.DIRECTORY) else (),
    )


def _xattrs(path: str) -> tuple[tuple[bytes, bytes], ...]:
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
        return tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(names)
            if name.startswith(b"user.") and not name.startswith(OUR_XATTRS)
        )
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return ()
        raise TreeChanged(f"{path!r} changed while the tree was read") from error
