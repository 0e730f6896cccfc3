from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_tier.demo.checkpoint import Checkpoint, make_checkpoint, verify_checkpoint, write_checkpoint
from fuse_tier.errors import Damaged


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        {"step_100/shard_0.bin": b"weights" * 1000, "step_100/COMMITTED": b"", "latest": b"step_100\n"},
        {"step_100/first": "shard_0.bin"},
    )


@pytest.fixture
def written(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    write_checkpoint(checkpoint, tmp_path)
    return tmp_path


def test_what_was_written_is_verified(checkpoint: Checkpoint, written: Path) -> None:
    verify_checkpoint(checkpoint, written)


def test_a_flipped_byte_is_found(checkpoint: Checkpoint, written: Path) -> None:
    fd = os.open(written / "step_100/shard_0.bin", os.O_WRONLY)
    os.pwrite(fd, b"W", 3500)
    os.close(fd)
    with pytest.raises(Damaged, match=r"shard_0\.bin"):
        verify_checkpoint(checkpoint, written)


def test_a_missing_file_is_found(checkpoint: Checkpoint, written: Path) -> None:
    (written / "step_100/COMMITTED").unlink()
    with pytest.raises(Damaged, match="COMMITTED"):
        verify_checkpoint(checkpoint, written)


def test_a_file_too_many_is_found(checkpoint: Checkpoint, written: Path) -> None:
    (written / "latest.tmp").write_bytes(b"")
    with pytest.raises(Damaged, match=r"latest\.tmp"):
        verify_checkpoint(checkpoint, written)


def test_a_link_that_leads_elsewhere_is_found(checkpoint: Checkpoint, written: Path) -> None:
    (written / "step_100/first").unlink()
    (written / "step_100/first").symlink_to("COMMITTED")
    with pytest.raises(Damaged, match="leads to"):
        verify_checkpoint(checkpoint, written)


def test_the_demos_checkpoint_has_a_quarter_of_a_gibibyte_and_small_files() -> None:
    checkpoint = make_checkpoint()
    assert checkpoint.size > 256 << 20
    assert b"" in checkpoint.files.values()
    assert len(checkpoint.files) > 40
