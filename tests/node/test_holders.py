from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

from fuse_tier.node.holders import Holder, find_holders


def test_a_process_is_found_by_its_working_directory(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with subprocess.Popen(["sleep", "1000"], cwd=tmp_path / "below") as user:
        assert find_holders(str(tmp_path)) == (Holder(user.pid, "sleep"),)
        assert find_holders(str(tmp_path / "below" / "deeper")) == ()
        user.kill()


def test_a_process_is_found_by_its_open_files_and_its_mappings(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        assert [holder.pid for holder in find_holders(str(tmp_path))] == [os.getpid()]
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert [holder.pid for holder in find_holders(str(tmp_path))] == [os.getpid()]
    mapped.close()
    assert find_holders(str(tmp_path)) == ()


def test_a_holder_is_named_by_command_and_pid() -> None:
    assert str(Holder(12, "python3")) == "python3 (pid 12)"
