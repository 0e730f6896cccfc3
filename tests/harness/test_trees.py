from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.trees import tree_of


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/file").write_bytes(b"content")
    os.link(tmp_path / "directory/file", tmp_path / "second name")
    (tmp_path / "link").symlink_to("nowhere")
    return tmp_path


def test_equal_trees_are_equal(top: Path) -> None:
    assert tree_of(top) == tree_of(top)
    assert tree_of(top).keys() == {"directory", "directory/file", "second name", "link"}


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "directory/file").write_bytes(b"CONTENT"),
        lambda top: (top / "directory/file").chmod(0o600),
        lambda top: os.utime(top / "directory", ns=(1, 1)),
        lambda top: os.setxattr(top / "directory/file", "user.note", b"x"),
        lambda top: ((top / "second name").unlink(), (top / "second name").write_bytes(b"content")),
        lambda top: ((top / "link").unlink(), (top / "link").symlink_to("elsewhere")),
        lambda top: (top / "new").touch(),
    ],
    ids=["content", "mode", "time", "attribute", "hard link", "target", "name"],
)
def test_any_difference_is_seen(top: Path, change: object) -> None:
    before = tree_of(top)
    assert callable(change)
    change(top)
    assert tree_of(top) != before
