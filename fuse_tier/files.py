"""Whole files made of what is in memory."""

from __future__ import annotations

import os


def write_new(path: str, content: memoryview) -> None:
    """Makes a file, for its owner alone, that has this content. Raises OSError, and leaves what is there then."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        done = 0
        while done < len(content):
            done += os.write(fd, content[done:])
    finally:
        os.close(fd)
