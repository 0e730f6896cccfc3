from __future__ import annotations

import os
from pathlib import Path

from fuse_tier.fs.predecessors import LARGE_BYTES, large_files


def test_large_files_are_found_with_their_sizes_the_oldest_first(tmp_path: Path) -> None:
    (tmp_path / "step_1").mkdir()
    for name, size, modified in (("step_1/new", LARGE_BYTES + 1, 2), ("old", LARGE_BYTES, 1), ("small", 100, 3)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        os.utime(tmp_path / name, (modified, modified))
    (tmp_path / "link").symlink_to(tmp_path / "old")
    assert large_files(os.fsencode(tmp_path)) == [(b"/old", LARGE_BYTES), (b"/step_1/new", LARGE_BYTES + 1)]


def test_a_tree_that_is_gone_has_none(tmp_path: Path) -> None:
    assert large_files(os.fsencode(tmp_path / "absent")) == []
