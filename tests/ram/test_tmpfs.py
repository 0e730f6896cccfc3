from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_tier.errors import ConfigError, TierFull
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.tmpfs import RamSetup, prepare_ram

SIZE = 64 << 20


def prepare(path: Path, node: str = "a", cluster: str = "default", size: int = SIZE) -> RamSetup:
    return prepare_ram(str(path), size, node, cluster)


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """A place on no tmpfs; what was mounted there is unmounted."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout
    if kind.strip() == "tmpfs":
        pytest.skip(f"{tmp_path} is on a tmpfs: give pytest a --basetemp on a disk")
    path = tmp_path / "ram"
    yield path
    while os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)


def test_a_new_directory_on_a_tmpfs_is_used_by_any_user(memory_path: Path) -> None:
    path = memory_path / "run" / "a"
    setup = prepare(path)
    assert setup.layout.root == str(path)
    assert setup.filesystem == "tmpfs that was there"
    assert setup.huge_pages
    assert not setup.mounted
    assert json.loads((path / "fuse-tier.json").read_text()) == {"format": 1, "node": "a", "cluster": "default"}
    assert {entry.name for entry in path.iterdir()} == {"fuse-tier.json", "blobs", "incoming", "manifests", "volumes"}
    assert sorted(entry.name for entry in (path / "blobs").iterdir()) == [f"{number:02x}" for number in range(256)]
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in [path, *path.glob("*/")]} <= {0o700, 0o600, 0o644}


def test_an_empty_directory_on_a_tmpfs_is_used_and_closed_to_others(memory_path: Path) -> None:
    memory_path.chmod(0o755)
    prepare(memory_path)
    assert stat.S_IMODE(memory_path.stat().st_mode) == 0o700


def test_a_restart_finds_everything_as_it_was(memory_path: Path) -> None:
    prepare(memory_path)
    kept = memory_path / "blobs" / "00" / "something"
    kept.write_bytes(b"0123")
    prepare(memory_path)
    assert kept.read_bytes() == b"0123"


def test_a_start_that_died_half_way_is_carried_on(memory_path: Path) -> None:
    (memory_path / "fuse-tier.json.new").write_text('{"format": 1')
    prepare(memory_path)
    assert json.loads((memory_path / "fuse-tier.json").read_text())["node"] == "a"


def everything_below(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() if file.is_file() else b"" for file in path.rglob("*")}


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (None, "is not empty and not ours"),
        ("nonsense", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 2, "node": "a", "cluster": "default"}', "format 2"),
        ('{"format": 1, "node": "b", "cluster": "default"}', "node 'b' in cluster 'default'"),
        ('{"format": 1, "node": "a", "cluster": "other"}', "node 'a' in cluster 'other'"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_as_it_is(memory_path: Path, marker: str | None, message: str) -> None:
    (memory_path / "thesis.txt").write_text("precious")
    if marker is not None:
        (memory_path / "fuse-tier.json").write_text(marker)
    before = everything_below(memory_path)
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(memory_path)
    assert str(memory_path) in str(caught.value)
    assert everything_below(memory_path) == before


def test_a_file_is_no_ram_tier(memory_path: Path) -> None:
    (memory_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match="is no directory"):
        prepare(memory_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        prepare(memory_path / "file" / "below")


def test_a_directory_that_all_users_share_is_refused(memory_path: Path) -> None:
    memory_path.chmod(0o1777)
    with pytest.raises(ConfigError, match="all users share"):
        prepare(memory_path)
    assert os.listdir(memory_path) == []


@pytest.mark.root
def test_a_directory_of_another_user_is_refused(memory_path: Path) -> None:
    os.chown(memory_path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        prepare(memory_path)


@pytest.mark.network
def test_a_directory_on_a_disk_that_is_not_empty_is_refused(disk_path: Path) -> None:
    disk_path.mkdir()
    (disk_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty and not ours"):
        prepare(disk_path)
    assert os.listdir(disk_path) == ["thesis.txt"]
    assert not os.path.ismount(disk_path)


@pytest.mark.root
def test_on_a_disk_a_tmpfs_of_the_size_is_mounted(disk_path: Path) -> None:
    setup = prepare(disk_path)
    assert setup.mounted
    assert setup.filesystem == "tmpfs mounted by us"
    assert os.path.ismount(disk_path)
    found = os.statvfs(disk_path)
    assert found.f_blocks * found.f_frsize == SIZE
    assert stat.S_IMODE(disk_path.stat().st_mode) == 0o700
    again = prepare(disk_path)
    assert not again.mounted
    assert again.filesystem == "tmpfs mounted by us"
    with pytest.raises(ConfigError, match="node 'a'"):
        prepare(disk_path, node="b")


@pytest.mark.root
def test_an_empty_directory_with_a_space_in_its_name_is_mounted_on(disk_path: Path) -> None:
    path = disk_path.parent / "ram of a"
    path.mkdir()
    try:
        assert prepare(path).mounted
        assert not prepare(path).mounted
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.root
def test_another_size_is_taken_on_at_a_restart_unless_what_is_there_does_not_fit(disk_path: Path) -> None:
    prepare(disk_path)
    (disk_path / "blobs" / "00" / "large").write_bytes(bytes(20 << 20))
    prepare(disk_path, size=2 * SIZE)
    found = os.statvfs(disk_path)
    assert found.f_blocks * found.f_frsize == 2 * SIZE
    with pytest.raises(ConfigError, match="in use"):
        prepare(disk_path, size=10 << 20)
    assert (disk_path / "blobs" / "00" / "large").stat().st_size == 20 << 20


@pytest.mark.root
def test_a_full_ram_tier_refuses_and_leaves_nothing_behind(disk_path: Path) -> None:
    setup = prepare(disk_path, size=8 << 20)
    content = RamContent(setup.layout, "ram of a")
    with pytest.raises(TierFull, match="ram of a is full"):
        content.create(hash_bytes(bytes(9 << 20)))
    assert os.listdir(setup.layout.incoming) == []
    content.create(hash_bytes(bytes(4 << 20))).discard()


@pytest.mark.root
def test_an_ordinary_user_is_told_to_use_dev_shm(disk_path: Path) -> None:
    disk_path.mkdir()
    os.chown(disk_path, 12345, 12345)
    for parent in disk_path.parents[:3]:
        parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(12345)
            prepare(disk_path)
        except ConfigError as error:
            status = 0 if "name a path under /dev/shm, or run as root" in str(error) else 2
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(waited) == 0
    assert disk_path.is_dir()
