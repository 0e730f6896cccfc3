"""A pod's group (fsGroup) over its volume: as kubelet does it to other volumes, where it is not so already."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

_DIRECTORY_BITS: Final = stat.S_ISGID | 0o770
_FILE_BITS: Final = 0o660
_LEAD: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def give_to_group(path: str, group: int) -> None:
    """Lets ``group`` read and write all of the volume at ``path``, and what is made in it from now on.

    The root comes last: when it is right, so is what is below it, and nothing is walked. Symlinks are left alone.
    Blocks. Raises OSError.
    """
    root = os.open(path, _LEAD)
    try:
        if _is_right(os.fstat(root), group):
            return
        for _, directories, files, fd in os.fwalk(dir_fd=root, topdown=False):
            for name in (*files, *directories):
                with suppress(FileNotFoundError):
                    _change(name, fd, group)
        os.fchown(root, -1, group)
        os.fchmod(root, stat.S_IMODE(os.fstat(root).st_mode) | _DIRECTORY_BITS)
    finally:
        os.close(root)


def _is_right(found: os.stat_result, group: int) -> bool:
    return found.st_gid == group and found.st_mode & _DIRECTORY_BITS == _DIRECTORY_BITS


def _change(name: str, directory: int, group: int) -> None:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return
    bits = _DIRECTORY_BITS if stat.S_ISDIR(found.st_mode) else _FILE_BITS
    if found.st_gid != group:
        os.chown(name, -1, group, dir_fd=directory, follow_symlinks=False)
    if found.st_mode & bits != bits:
        os.chmod(name, stat.S_IMODE(found.st_mode) | bits, dir_fd=directory)
