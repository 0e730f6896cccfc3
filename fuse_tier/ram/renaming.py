"""renameat2(2), which the standard library lacks."""

from __future__ import annotations

import ctypes
import os
from typing import Final

RENAME_NOREPLACE: Final = 1  # linux/fs.h
RENAME_EXCHANGE: Final = 2  # linux/fs.h
RENAME_WHITEOUT: Final = 4  # linux/fs.h

_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def rename_with_flags(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _renameat2(old_directory, old, new_directory, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
