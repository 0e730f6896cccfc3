"""What large files a tree has: from them a daemon knows the sizes that daemons before it have seen."""

from __future__ import annotations

import os
from typing import Final

LARGE_BYTES: Final = 1 << 20  # smaller files are written in less time than it takes to reserve room for them
_MOST_FILES: Final = 20_000


def large_files(tree: bytes) -> list[tuple[bytes, int]]:
    """Their paths, from the tree on, and sizes, the oldest first; of a very large tree only a part. Blocks."""
    found: list[tuple[int, bytes, int]] = []
    seen = 0
    pending = [tree]
    while pending and seen < _MOST_FILES:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has gone, or become something else
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                seen += 1
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if status.st_size >= LARGE_BYTES:
                    found.append((status.st_mtime_ns, entry.path.removeprefix(tree), status.st_size))
    return [(path, size) for _, path, size in sorted(found)]
