"""Small files in which we keep what we know: replaced at once, and written also when the tier is full (room.py).

Blocks, for microseconds.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import Reserve


def replace(layout: Layout, path: str, text: str) -> None:
    """Has ``text`` stand in the file at ``path`` on a RAM tier, in place of what stood there. Raises OSError."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    encoded = text.encode()
    try:
        Reserve(layout).write(lambda: _write(temporary, encoded), len(encoded))
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write(path: str, text: bytes) -> None:
    with open(path, "wb") as file:
        file.write(text)
