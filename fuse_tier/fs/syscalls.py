"""System calls that the standard library lacks."""

from __future__ import annotations

import os
import resource
import stat


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
