"""System calls that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from typing import Final

RENAME_NOREPLACE: Final = 1  # linux/fs.h
RENAME_EXCHANGE: Final = 2  # linux/fs.h
RENAME_WHITEOUT: Final = 4  # linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = _libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def rename_with_flags(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _renameat2(old_directory, old, new_directory, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def raise_descriptor_limit() -> None:
    """Lets this process open as many files as it may: each file that a job has open is one of ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def drop_privileges(file: int | bytes) -> None:
    """What write(2) and truncate(2) do for a caller without CAP_FSETID; to us, who have it, the tmpfs doesn't."""
    mode = stat.S_IMODE(os.stat(file).st_mode)
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        os.chmod(file, kept)
