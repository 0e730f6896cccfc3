"""When all content of a RAM tier was last read again: a note beside it, so that a worker counts on from there.

A note that says nothing, or a time that has not come yet, is none. Blocks, for microseconds.
"""

from __future__ import annotations

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.notes import replace

_LONGEST = 32  # characters


def read_scrubbed(layout: Layout, now: float) -> float | None:
    """Seconds since 1970, as ``now``; None where there is no note."""
    try:
        with open(layout.scrubbed, encoding="ascii") as file:
            when = int(file.read(_LONGEST))
    except (OSError, ValueError):
        return None
    return when if 0 <= when <= now else None


def write_scrubbed(layout: Layout, when: float) -> None:
    """Raises OSError."""
    replace(layout, layout.scrubbed, str(int(when)))
