from __future__ import annotations

from pathlib import Path

import pytest

from fuse_tier.ram.use import is_used, is_written
from tests.harness.mapping import mapped


@pytest.fixture
def file(memory_path: Path) -> Path:
    path = memory_path / "file"
    path.write_bytes(b"content")
    return path


def test_nobody_uses_a_file_that_is_closed(file: Path) -> None:
    assert not is_written(str(file))
    assert not is_used(str(file))


def test_one_that_is_open_for_reading_is_used_but_not_written(file: Path) -> None:
    with file.open("rb"):
        assert not is_written(str(file))
        assert is_used(str(file))


def test_one_that_is_open_for_writing_is_written(file: Path) -> None:
    with file.open("r+b"):
        assert is_written(str(file))
        assert is_used(str(file))


@pytest.mark.parametrize("writable", [False, True])
def test_a_mapping_counts_after_its_descriptor_was_closed(file: Path, writable: bool) -> None:
    with mapped(file, writable=writable) as memory:
        assert is_written(str(file)) == writable
        assert is_used(str(file))
        assert bytes(memory) == b"content"
    assert not is_used(str(file))


def test_a_missing_file_is_told_as_such(memory_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        is_written(str(memory_path / "missing"))
