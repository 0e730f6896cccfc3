"""What the filesystem's benchmarks measure with: a wrong instrument would praise us or shame us unseen."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from fuse_tier.bench.fs_names import loopback
from fuse_tier.bench.load import Job


@pytest.mark.fuse
def test_the_filesystem_to_compare_with_shows_a_directory_at_another_place(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "directory").mkdir(parents=True)
    (source / "directory" / "old").write_bytes(b"old content")
    with loopback(source, tmp_path / "mount") as mount:
        assert (mount / "directory" / "old").read_bytes() == b"old content"
        (mount / "new").mkdir()
        (mount / "new" / "file").write_bytes(b"new content")
        assert (source / "new" / "file").read_bytes() == b"new content"
        assert (mount / "new" / "file").stat().st_size == 11
        assert stat.S_ISDIR((mount / "new").stat().st_mode)
        assert sorted(os.listdir(mount)) == ["directory", "new"]
        with pytest.raises(FileNotFoundError):
            (mount / "absent").stat()
        shutil.rmtree(mount / "new")
        assert os.listdir(source) == ["directory"]
    assert os.listdir(tmp_path / "mount") == []


def test_the_job_under_which_daemons_are_killed_finds_no_fault_where_there_is_none(tmp_path: Path) -> None:
    job = Job(str(tmp_path))
    for number in range(3):
        job.round(number)
    assert job.errors == []
    assert job.operations > 50
    assert job.longest > 0
    assert os.listdir(tmp_path) == ["held"]


def test_that_job_notices_what_fails(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    job = Job(str(tmp_path / "place"))
    shutil.rmtree(tmp_path / "place")
    job.round(0)
    assert any("No such file" in error for error in job.errors)
