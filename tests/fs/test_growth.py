"""Files that grow, and whose size nobody knew, get room ahead; and what was too much is given back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.fs.growth import Extent, room_ahead
from tests.fs.mounted import Mounted, eventually
from tests.harness.logs import ExpectedLogs

MIB = 1 << 20
sizes = st.integers(0, 1 << 40)


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


@given(grown=sizes, size=sizes, allocated=sizes, free=sizes)
def test_what_is_taken_ahead_is_in_whole_huge_pages_and_a_small_part_of_what_is_free(
    grown: int, size: int, allocated: int, free: int
) -> None:
    ahead = room_ahead(grown, Extent(size, allocated), free)
    assert 0 <= ahead <= free // 8
    assert ahead <= 2 * grown
    assert ahead % (2 * MIB) == 0


@given(grown=sizes, size=sizes, free=sizes)
def test_a_file_with_holes_gets_none(grown: int, size: int, free: int) -> None:
    assert room_ahead(grown, Extent(size, size - 1), free) == 0


@given(grown=sizes, size=sizes, free=sizes)
def test_a_file_that_has_enough_gets_none(grown: int, size: int, free: int) -> None:
    assert room_ahead(grown, Extent(size, size + 256 * MIB), free) == 0


def test_a_file_that_grows_fast_gets_twice_what_it_grew() -> None:
    assert room_ahead(16 * MIB, Extent(16 * MIB, 16 * MIB), 1 << 40) == 32 * MIB
    assert room_ahead(2 * MIB, Extent(16 * MIB, 16 * MIB), 1 << 40) == 0
    assert room_ahead(1 << 40, Extent(1 << 40, 1 << 40), 1 << 50) == 256 * MIB


@pytest.fixture
def passthrough(start: Callable[..., Mounted]) -> Mounted:
    mounted = start(passthrough="on")
    if "error" in mounted.said:
        pytest.skip("needs a kernel with FUSE passthrough")
    return mounted


@pytest.mark.fuse
@pytest.mark.root
def test_room_is_ahead_of_a_file_while_it_grows_and_is_given_back_when_it_is_closed(passthrough: Mounted) -> None:
    path, there = passthrough.path / "file", passthrough.place.tree / "file"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(24 * MIB))
        eventually(lambda: blocks(there) >= 32 * MIB, "room ahead")
        assert path.stat().st_size == 24 * MIB
    eventually(lambda: blocks(there) == 24 * MIB, "it is given back")
    assert path.read_bytes() == bytes(24 * MIB)


@pytest.mark.fuse
@pytest.mark.root
def test_the_next_daemon_looks_after_files_that_were_open_already(
    passthrough: Mounted, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    with (passthrough.path / "file").open("wb", buffering=0) as file:
        passthrough.kill_daemon()
        os.stat(passthrough.path)  # it serves
        file.write(bytes(24 * MIB))
        eventually(lambda: blocks(passthrough.place.tree / "file") >= 32 * MIB, "room ahead")
