from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import IdentityBusy, MountError
from fuse_tier.mount.claim import Record, find_records, forget_record, is_held, read_record, take_claim
from fuse_tier.ram.layout import Layout

RECORD = Record("default/job/0", "/mnt/job", 42, "/run/keeper.sock")


@pytest.fixture
def layout(memory_path: Path) -> Layout:
    return Layout(str(memory_path))


@pytest.fixture
def path(layout: Layout) -> str:
    found = Path(layout.volumes, "default", "job", "0", "keeper")
    found.parent.mkdir(parents=True)
    return str(found)


def test_what_is_said_can_be_read_and_found_while_the_lock_is_held_and_after(layout: Layout, path: str) -> None:
    claim = take_claim(layout, path, RECORD)
    assert is_held(path)
    claim.update(device=7, kept=True)
    said = read_record(path)
    assert said is not None
    assert (said.pid, said.device, said.kept, said.reason) == (42, 7, True, "")
    claim.update(reason="x" * 2000)
    claim.update(reason="shorter")
    os.close(claim.fd)
    assert not is_held(path)
    ((where, found),) = find_records(layout)
    assert (where, found.reason) == (path, "shorter")
    forget_record(path)
    assert list(find_records(layout)) == []


def test_a_lock_that_is_held_is_refused_and_its_holder_named(
    layout: Layout, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "HURRIED_STOP", 0.05)
    claim = take_claim(layout, path, RECORD)
    with pytest.raises(
        IdentityBusy, match="default/job/0 is mounted on this node already at /mnt/job, by process 42"
    ):
        take_claim(layout, path, RECORD)
    os.close(claim.fd)
    os.close(take_claim(layout, path, RECORD).fd)


@pytest.mark.network
def test_the_lock_lasts_as_long_as_any_process_that_has_it(layout: Layout, path: str) -> None:
    claim = take_claim(layout, path, RECORD)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[claim.fd]) as daemon:
        os.close(claim.fd)
        assert is_held(path)
        daemon.communicate(b"\n")
    assert not is_held(path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"identity": 1', b"\xff\xfe\n", b"[1]\n"])
def test_what_nobody_understands_says_nothing(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    assert read_record(path) is None


def test_a_volume_that_is_not_there_says_so(layout: Layout) -> None:
    missing = f"{layout.volumes}/default/job/1/keeper"
    assert read_record(missing) is None
    assert not is_held(missing)
    with pytest.raises(MountError, match=r"default/job/0 cannot be mounted: .*No such file"):
        take_claim(layout, missing, RECORD)


@pytest.mark.root
def test_a_full_tier_has_room_for_it_in_its_reserve(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(tmp_path)], check=True)
    try:
        layout = Layout(str(tmp_path))
        volume = Path(layout.volumes, "default", "job", "0")
        volume.mkdir(parents=True)
        Path(layout.reserve).write_bytes(bytes(64 << 10))
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "all").write_bytes(bytes(2 << 20))
        claim = take_claim(layout, str(volume / "keeper"), RECORD)
        Path(layout.reserve).unlink()
        with pytest.raises(OSError, match="No space"), (tmp_path / "all").open("ab") as file:
            file.write(bytes(2 << 20))
        claim.update(reason="it takes no further page")
        os.close(claim.fd)
        said = read_record(str(volume / "keeper"))
        assert said is not None
        assert said.reason == "it takes no further page"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
