"""What the job sees when the RAM tier is full: exact answers, and room again after a removal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fs.filling import small_tmpfs
from tests.fs.mounted import Mounted, Place

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_ROOM = 8 << 20
_HALF = (_ROOM - (64 << 10)) // 2  # but for a few pages, which the volume itself takes


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A small tmpfs of its own, in the place of the large one that all tests share."""
    with small_tmpfs(tmp_path / "memory", _ROOM) as path:
        yield path


@dataclass(frozen=True, slots=True)
class Full:
    """A mounted volume that is full."""

    path: Path
    place: Place
    written: int
    """What the writes into it said that they had written."""


@pytest.fixture
def full(mounted: Mounted, place: Place) -> Full:
    """A mounted volume that a sealed file of half its room and an unsealed one have filled up."""
    (mounted.path / "sealed").write_bytes(b"s" * _HALF)
    assert place.seal("sealed")
    fd = os.open(mounted.path / "filling", os.O_WRONLY | os.O_CREAT)
    written = 0
    try:
        while True:
            written += os.write(fd, bytes(100_000))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(fd)
    return Full(mounted.path, place, written)


def test_a_write_that_does_not_fit_is_cut_exactly_where_the_room_ends(full: Full) -> None:
    size = (full.path / "filling").stat().st_size
    assert size == full.written
    found = os.statvfs(full.path)
    assert found.f_bavail == 0
    assert (full.place.tree / "filling").stat().st_size == size
    assert (full.path / "filling").read_bytes() == bytes(size)


def test_a_removal_brings_the_volume_back(full: Full) -> None:
    (full.path / "filling").unlink()
    (full.path / "again").write_bytes(b"a" * (1 << 20))
    assert (full.path / "again").read_bytes() == b"a" * (1 << 20)


def test_a_sealed_file_that_cannot_be_copied_away_is_not_opened_for_writing(full: Full) -> None:
    for attempt in (lambda path: path.open("r+b"), lambda path: os.truncate(path, 5)):
        with pytest.raises(OSError) as caught:
            attempt(full.path / "sealed")
        assert caught.value.errno == errno.ENOSPC
    assert (full.path / "sealed").read_bytes() == b"s" * _HALF
    assert os.listdir(full.place.layout.incoming) == []
    (full.path / "filling").unlink()
    (full.path / "sealed").write_bytes(b"new")
    assert (full.path / "sealed").read_bytes() == b"new"
