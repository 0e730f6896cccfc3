"""What a tree is, as a value: to compare a volume with what it was before."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_OURS = "user.fuse_tier."


@dataclass(frozen=True, slots=True)
class Node:
    """All of a file or directory that must survive. Its first name stands for the others of a hard link."""

    kind: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: str  # a digest, or a link's target
    first_name: str
    attributes: tuple[tuple[str, bytes], ...]


def tree_of(top: Path) -> dict[str, Node]:
    """Everything below ``top``, by relative path. Reads every byte."""
    first_names: dict[int, str] = {}
    found = {}
    for parent, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, top)
            status = os.lstat(path)
            first = first_names.setdefault(status.st_ino, relative)
            found[relative] = _node(path, status, first)
    return found


def _node(path: str, status: os.stat_result, first_name: str) -> Node:
    content = ""
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    names = [] if stat.S_ISLNK(status.st_mode) else sorted(os.listxattr(path, follow_symlinks=False))
    return Node(
        stat.S_IFMT(status.st_mode),
        stat.S_IMODE(status.st_mode),
        (status.st_uid, status.st_gid),
        status.st_mtime_ns,
        content,
        first_name,
        tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names if not name.startswith(_OURS)),
    )
