"""Making a tree from a manifest: files, links, modes, owners, times.

The tree is built under another name and gets its own when it is whole. Content is linked where the blob
can serve as the file (a volume on the RAM tier), and copied elsewhere. All of it blocks, in a thread.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress

from fuse_tier.blobs import Blob, Source
from fuse_tier.errors import MountError
from fuse_tier.manifest import Entry, Kind, Manifest

_CHUNK = 64 << 20

PlaceFile = Callable[[Blob, str], None]
"""Makes a file with a blob's content at a path that does not exist yet."""


def build_tree(manifest: Manifest, target: str, place: PlaceFile) -> None:
    """Makes the tree of a manifest as the new directory ``target``. Raises OSError, and what ``place`` raises."""
    root = os.fsencode(target)
    directories: list[tuple[bytes, Entry]] = []
    for entry in manifest.entries:
        path = os.path.join(root, entry.path) if entry.path else root
        if entry.kind is Kind.DIRECTORY:
            os.mkdir(path, 0o700)
            directories.append((path, entry))
            continue
        if entry.kind is Kind.HARDLINK:
            os.link(os.path.join(root, entry.target or b""), path, follow_symlinks=False)
            continue
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.target or b"", path)
        elif entry.kind is Kind.FIFO:
            os.mkfifo(path, 0o600)
        elif entry.blob is not None:
            place(entry.blob, os.fsdecode(path))
        _dress(path, entry)
    for path, entry in reversed(directories):  # after all that is made in them: that changes their times
        _dress(path, entry)


def _dress(path: bytes, entry: Entry) -> None:
    for name, value in entry.xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if entry.kind is not Kind.SYMLINK:
        os.chmod(path, entry.mode)  # after chown, which takes setuid bits away
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def copy_into(source: Source, blob: Blob, path: str) -> None:
    """Makes a file of its own with a blob's content."""
    fd = source.open(blob)
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if blob.size:
                os.posix_fallocate(target, 0, blob.size)
            while os.sendfile(target, fd, None, _CHUNK):
                continue
        finally:
            os.close(target)
    finally:
        os.close(fd)


def make_placeholder(blob: Blob, path: str) -> None:
    """Makes a file of a blob's size whose content is not here."""
    with open(path, "xb") as file:
        file.truncate(blob.size)


def check_new_directory(path: str) -> None:
    """Raises MountError unless a tree may be put at ``path``: it is missing, or an empty directory."""
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
        raise MountError(f"{path} is no directory: name one that is empty, or that does not exist yet")
    if os.path.isdir(path) and os.listdir(path):
        raise MountError(f"{path} is not empty: nothing is restored over what is there; name an empty directory")
    if not os.path.isdir(os.path.dirname(path)):
        raise MountError(f"{os.path.dirname(path)} does not exist: make it, or name a directory in one that does")


def remove_tree(path: str) -> None:
    """Removes a tree of ours, whatever modes its directories have; one that is not there is no error."""
    with suppress(FileNotFoundError):
        os.chmod(path, stat.S_IRWXU)
        for directory, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(inner := os.path.join(directory, name)):
                    os.chmod(inner, stat.S_IRWXU)
        shutil.rmtree(path)
