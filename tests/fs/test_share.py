"""A volume that has used up its share gets ENOSPC, also when the kernel writes its files by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_tier.fs.share import SMALL_BYTES, room_taken
from tests.fs.mounted import Mounted

pytestmark = pytest.mark.fuse

SHARE = 4 << 20
MODES = pytest.mark.parametrize(
    "passthrough", [pytest.param("auto", marks=pytest.mark.root), pytest.param("off", id="plain")]
)


def written(path: Path, size: int) -> int:
    """The bytes that could be written to a new file."""
    total = 0
    with open(path, "wb", buffering=0) as file:
        try:
            while total < size:
                total += file.write(bytes(min(size - total, 1 << 18)))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return total


@MODES
def test_a_volume_has_its_share_and_its_markers_and_no_more(start: Callable[..., Mounted], passthrough: str) -> None:
    path = start(share=SHARE, passthrough=passthrough).path
    assert written(path / "first", 3 << 20) == 3 << 20
    assert written(path / "second", SHARE) <= SHARE  # the last that may have been begun before it was full
    assert written(path / "third", SHARE) <= SMALL_BYTES
    room = os.statvfs(path)
    assert (room.f_blocks * room.f_frsize, room.f_bavail) == (SHARE, 0)
    assert written(path / "marker", 1000) == 1000
    os.rename(path / "marker", path / "latest")
    with open(path / "allocated", "wb") as file, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.posix_fallocate(file.fileno(), 0, 1 << 20)


@MODES
def test_what_is_removed_can_be_written_again_at_once(start: Callable[..., Mounted], passthrough: str) -> None:
    path = start(share=SHARE, passthrough=passthrough).path
    for number in range(5):
        assert written(path / f"step_{number}", SHARE - SMALL_BYTES) == SHARE - SMALL_BYTES
        (path / f"step_{number}").unlink()


def test_without_a_share_the_whole_tier_is_there(start: Callable[..., Mounted]) -> None:
    mounted = start()
    room, tier = os.statvfs(mounted.path), os.statvfs(mounted.place.layout.root)
    assert room.f_blocks == tier.f_blocks
    assert written(mounted.path / "file", SHARE + (1 << 20)) == SHARE + (1 << 20)


def test_room_is_counted_once_for_each_file_and_not_for_holes(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(bytes(1 << 16))
    os.link(tmp_path / "below" / "file", tmp_path / "again")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)
    assert 1 << 16 <= room_taken(os.fsencode(tmp_path)) < 1 << 20
