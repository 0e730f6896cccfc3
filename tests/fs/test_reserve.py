"""Room that is reserved for new files, and whose memory it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fs.mounted import Mounted, Place, eventually
from tests.harness.cgroups import memory_group, usage

pytestmark = pytest.mark.fuse

MIB = 1 << 20
WRITER = """
import os, sys
group, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if group:
    open(os.path.join(group, "cgroup.procs"), "w").write(str(os.getpid()))
fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
block = bytes(1 << 20)
for _ in range(size >> 20):
    os.write(fd, block)
os.close(fd)
"""


def write(path: Path, size: int, group: str = "") -> int:
    """A job of its own; gives its exit status."""
    return subprocess.run([sys.executable, "-S", "-c", WRITER, group, str(path), str(size)], check=False).returncode


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_room_is_there_while_a_successor_is_written_and_given_back_when_it_is_closed(mounted: Mounted) -> None:
    mnt, place = mounted.path, mounted.place
    (mnt / "step_1").mkdir()
    (mnt / "step_2").mkdir()
    (mnt / "step_1" / "rank0.bin").write_bytes(bytes(8 * MIB))
    with (mnt / "step_2" / "rank0.bin").open("wb", buffering=0) as file:
        file.write(b"little")
        assert blocks(place.tree / "step_2" / "rank0.bin") >= 8 * MIB
    eventually(lambda: blocks(place.tree / "step_2" / "rank0.bin") < MIB, "the room is given back")
    assert (mnt / "step_2" / "rank0.bin").read_bytes() == b"little"


def test_room_is_there_while_a_file_is_written_anew_under_its_name(mounted: Mounted) -> None:
    path, below = mounted.path / "last.bin", mounted.place.tree / "last.bin"
    path.write_bytes(bytes(8 * MIB))
    with path.open("wb", buffering=0) as file:
        assert path.stat().st_size == 0
        assert blocks(below) >= 8 * MIB
        file.write(b"little")
    eventually(lambda: blocks(below) < MIB, "the room is given back")
    assert path.read_bytes() == b"little"


def test_times_that_were_set_stay_when_the_room_is_given_back(mounted: Mounted) -> None:
    mnt, place = mounted.path, mounted.place
    (mnt / "step_1.bin").write_bytes(bytes(8 * MIB))
    with (mnt / "step_2.bin").open("wb", buffering=0) as file:
        file.write(b"little")
        os.utime(file.fileno(), ns=(1, 2))
    eventually(lambda: blocks(place.tree / "step_2.bin") < MIB, "the room is given back")
    assert (place.tree / "step_2.bin").stat().st_mtime_ns == 2
    assert (place.tree / "step_2.bin").stat().st_atime_ns == 1


def test_a_later_daemon_finds_the_predecessors_in_the_tree(start: Callable[..., Mounted], place: Place) -> None:
    (place.tree / "a1").write_bytes(bytes(4 * MIB))
    mounted = start()
    with (mounted.path / "a2").open("wb", buffering=0) as file:
        assert blocks(place.tree / "a2") >= 4 * MIB
        file.write(b"1")


@pytest.fixture
def limited() -> Iterator[str]:
    """A memory cgroup of 64 MiB."""
    with memory_group(64 * MIB) as group:
        yield group


def swap_is_off() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) <= 1


@pytest.mark.root
def test_a_job_may_write_more_than_its_own_memory_limit_from_the_second_checkpoint_on(
    mounted: Mounted, limited: str
) -> None:
    if not swap_is_off():
        pytest.skip("with swap, nobody is killed")
    mnt = mounted.path
    assert write(mnt / "step_1.bin", 160 * MIB) == 0  # a job without a limit
    assert write(mnt / "step_2.bin", 160 * MIB, limited) == 0
    assert usage(limited) < 64 * MIB


@pytest.mark.root
def test_a_job_may_do_so_from_the_first_checkpoint_on_where_sizes_are_configured(
    start: Callable[..., Mounted], limited: str
) -> None:
    mounted = start(expected_sizes=[["*.bin", 160 * MIB]])
    assert write(mounted.path / "step_1.bin", 160 * MIB, limited) == 0
    assert usage(limited) < 64 * MIB
