"""Makes memory ready, once: ``python -m fuse_tier.ram.warm RAM_ROOT``.

The first touch of memory that a virtual machine's host has not backed yet is many times slower than any later one,
and a job's first checkpoint would meet it. So as much memory as the RAM tier may take is allocated, touched and
freed, piece by piece. Not in the tmpfs itself: no job meets a full one because of it. Never more than is free, with
room to spare; in the machine's idle time; and this process is the first to go when memory runs short after all.

What was done stands in ``warmed.json`` on the tmpfs, and is gone with it: then it is done again.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import sys
import time
from typing import Final

from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import room_of

_PIECE_BYTES: Final = 64 << 20
_SPARED_BYTES: Final = 512 << 20
_SPARED_PART: Final = 10  # or this part of all memory, whichever is more
_STEP_BYTES: Final = 1 << 20


def free_memory() -> tuple[int, int]:
    """All memory of the machine, and what nobody uses of it, not even as a cache; bytes."""
    found: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, value = line.split(":")
            found[name] = int(value.split()[0]) << 10
    return found["MemTotal"], found["MemFree"]


def spare_memory() -> int:
    """How many bytes may be taken ahead of need; negative where so many should be given back."""
    total, free = free_memory()
    return free - max(_SPARED_BYTES, total // _SPARED_PART)


def warm(wanted: int) -> int:
    """Touches so many bytes, or what is free; gives how many. They are free again when this returns."""
    pieces: list[mmap.mmap] = []
    zeros = bytes(_STEP_BYTES)
    try:
        while len(pieces) * _PIECE_BYTES < wanted:
            if spare_memory() < _PIECE_BYTES:
                break
            piece = mmap.mmap(-1, _PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            piece.madvise(mmap.MADV_HUGEPAGE)
            pieces.append(piece)
            for start in range(0, _PIECE_BYTES, _STEP_BYTES):
                piece[start : start + _STEP_BYTES] = zeros
        return len(pieces) * _PIECE_BYTES
    finally:
        for piece in pieces:
            piece.close()


def read_warmed(layout: Layout) -> dict[str, float] | None:
    """``bytes`` and ``seconds`` of what was done; None if nothing was."""
    try:
        with open(layout.warmed, encoding="ascii") as file:
            said = json.load(file)
        return {"bytes": int(said["bytes"]), "seconds": float(said["seconds"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def main(root: str) -> None:
    """Warms what the tmpfs has left, and writes down what was done."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    layout, started = Layout(root), time.monotonic()
    size = warm(room_of(root).free)
    temporary = f"{layout.warmed}.new"
    with open(temporary, "w", encoding="ascii") as file:
        json.dump({"bytes": size, "seconds": round(time.monotonic() - started, 3)}, file)
    os.rename(temporary, layout.warmed)


if __name__ == "__main__":
    main(sys.argv[1])
