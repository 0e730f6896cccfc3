"""Huge pages for content that has come to rest.

A tmpfs gives a file that grows pages as large as each write; who reads it through a mapping then pays for each one.
The kernel brings such pages together when it is asked (MADV_COLLAPSE, Linux 6.1): it copies, which takes half
a second of a processor's time for 1 GiB, and what is together already costs next to nothing. The memory then counts
against who asked. Nobody who reads or writes the file meanwhile notices more than a short wait.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Final

_MADV_COLLAPSE: Final = 25  # asm-generic/mman-common.h, kernel 6.1
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# In use just now, or no memory that is large enough: this part stays as it is.
_NOT_NOW: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOMEM})


def huge_page_bytes() -> int:
    """The size of a huge page; 0 where the kernel has none."""
    try:
        return int(_SIZE.read_text())
    except (OSError, ValueError):
        return 0


def bring_together(path: str, offset: int, size: int) -> bool:
    """Has a part of a file brought into huge pages, as far as that goes; False if this kernel will not hear of it.

    ``offset`` is a multiple of a huge page. Holes stay holes: a file that has some is left alone, and so is one that
    cannot be opened, because it is gone by now. Blocks.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        found = os.fstat(fd)
        size = min(size, found.st_size - offset)
        if size <= 0 or found.st_blocks * 512 < found.st_size:
            return True
        with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as part:
            part.madvise(_MADV_COLLAPSE)
    except OSError as error:
        return error.errno in _NOT_NOW
    finally:
        os.close(fd)
    return True
