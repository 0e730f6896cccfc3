"""Where benchmarks write: a tmpfs as fast as this machine has one, and content that no two runs share."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fuse_tier.errors import FuseTierError

GIB = 1 << 30
BLOCK_BYTES = 1 << 20
_TRIES = 3
TRIAL_BYTES = GIB // 4


@contextmanager
def fastest_tmpfs(directory: Path, size_bytes: int, trial: Callable[[Path], float]) -> Iterator[Path]:
    """A tmpfs in warm memory, with huge pages in the way that is faster here: ``within_size`` or ``always``.

    ``trial`` does what is to be measured, small, on a file of its own, and gives the seconds that took.
    """
    with tmpfs(directory, size_bytes) as within_size:
        warm(within_size, size_bytes - GIB // 2)
        if os.geteuid() != 0:
            yield within_size
            return
        with tmpfs(directory, size_bytes, huge="always") as always:
            seconds: dict[Path, list[float]] = {within_size: [], always: []}
            for _ in range(_TRIES):
                for place, taken in seconds.items():
                    taken.append(trial(place / "trial"))
                    (place / "trial").unlink()
            yield min(seconds, key=lambda place: statistics.median(seconds[place]))


@contextmanager
def tmpfs(directory: Path, size_bytes: int, huge: str = "within_size") -> Iterator[Path]:
    """A tmpfs with huge pages as the RAM tier uses them; an ordinary user's is the one at /dev/shm."""
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory(prefix="fuse-tier-bench-", dir="/dev/shm") as shared:
            yield Path(shared)
        return
    place = directory / f"tmpfs-{huge}"
    place.mkdir()
    options = f"huge={huge},size={size_bytes}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "fuse-tier-bench", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FuseTierError(f"no tmpfs can be mounted at {place}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def huge_pages(place: Path) -> str:
    """Of what mode a tmpfs of this module is."""
    return f"huge={place.name.removeprefix('tmpfs-')}" if place.name.startswith("tmpfs-") else "as at /dev/shm"


def warm(place: Path, size_bytes: int) -> None:
    """Touches memory, so that no run pays for what the machine's host has not backed yet."""
    file = place / "warm"
    write_file(file, size_bytes, bytes(BLOCK_BYTES))
    file.unlink()


def write_file(path: Path, size_bytes: int, block: bytes) -> float:
    """Writes a new file in whole blocks and closes it; gives the seconds that took."""
    begun = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for _ in range(size_bytes // len(block)):
            os.write(fd, block)
    finally:
        os.close(fd)
    return time.perf_counter() - begun


def write_files(directory: Path, count: int, size_bytes: int) -> None:
    """Writes a directory of files of which each, at each call, has other content than any before."""
    directory.mkdir()
    for number in range(count):
        write_file(directory / f"{number:05}", size_bytes, os.urandom(min(size_bytes, BLOCK_BYTES)))
