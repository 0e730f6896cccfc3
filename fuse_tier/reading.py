"""What a medium has lost: memory with an error that nothing corrects, or a disk that cannot give a part any more."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fuse_tier.errors import Damaged


def is_lost(error: OSError) -> bool:
    """Whether it says that the medium cannot give what it holds, however often it is asked."""
    return error.errno == errno.EIO


@contextmanager
def lost_is_damaged(what: object) -> Iterator[None]:
    """Raises Damaged where that is met: it is content that is not what its name says, and others may have it."""
    try:
        yield
    except OSError as error:
        if not is_lost(error):
            raise
        raise Damaged(f"{what} cannot be read: {error.strerror}; another source is needed") from error
