"""What the driver itself leaves in a pod's volume: ``jax-init-info.txt``, which tells JAX processes their ranks."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from csi.places import Rank
from fuse_tier.protocolfiles import INIT_INFO

JAX_INIT_INFO: Final = INIT_INFO.decode()
_TEMPORARY: Final = f".{JAX_INIT_INFO}.tmp"
_LEAD: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_pod_files(path: str, rank: Rank | None) -> None:
    """Writes the file for a rank; without one it is removed: one of an earlier pod would mislead this one.

    It appears whole. Blocks. Raises OSError.
    """
    root = os.open(path, _LEAD)
    try:
        if rank is None or not rank.first_ip:
            with suppress(FileNotFoundError):
                os.unlink(JAX_INIT_INFO, dir_fd=root)
            return
        with suppress(FileNotFoundError):
            os.unlink(_TEMPORARY, dir_fd=root)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_TEMPORARY, flags, 0o644, dir_fd=root)
        try:
            os.write(fd, rank.jax_init_info.encode())
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
        os.rename(_TEMPORARY, JAX_INIT_INFO, src_dir_fd=root, dst_dir_fd=root)
    finally:
        os.close(root)
