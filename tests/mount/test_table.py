from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.mount.table import canonical, is_inside, mount_around, mount_at, parse_mount_table, read_mounts

TABLE = (
    rb"23 27 0:22 / /sys rw,relatime - sysfs sysfs rw" + b"\n"
    rb"42 27 0:39 / /mnt/with\040space\011tab\134slash rw,nosuid shared:7 master:3 - fuse.fuse_tier a\040b rw,fd=3"
    + b"\n"
    rb"43 42 259:1048575 /sub /mnt/nested rw - ext4 /dev/nvme0n1 rw" + b"\n"
)


def escaped(name: bytes) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)


def test_a_mount_table_is_read_with_its_escapes_and_optional_fields() -> None:
    sysfs, volume, disk = parse_mount_table(TABLE)
    assert (sysfs.filesystem, sysfs.is_fuse) == ("sysfs", False)
    assert (volume.number, volume.path, volume.source) == (42, "/mnt/with space\ttab\\slash", "a b")
    assert volume.is_ours
    assert volume.device == os.makedev(0, 39)
    assert (disk.major, disk.minor, disk.filesystem) == (259, 1048575, "ext4")


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_every_name_that_a_directory_can_have_is_read_back(name: bytes) -> None:
    line = b"1 2 0:3 / /mnt/" + escaped(name) + b" rw - tmpfs none rw\n"
    (mount,) = parse_mount_table(line)
    assert os.fsencode(mount.path) == b"/mnt/" + name


def test_only_a_type_of_ours_is_ours() -> None:
    line = b"1 2 0:3 / /mnt rw - fuse.%s x rw\n"
    assert [parse_mount_table(line % name)[0].is_ours for name in (b"fuse_tier", b"fuse_tier2", b"sshfs")] == [
        True,
        False,
        False,
    ]


def test_of_two_mounts_on_one_path_the_upper_one_counts() -> None:
    mounts = parse_mount_table(
        b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /mnt rw - tmpfs b rw\n3 2 0:3 / /mnt rw - tmpfs c rw\n"
    )
    found = mount_at("/mnt", mounts)
    assert found is not None
    assert found.number == 3
    assert mount_at("/mnt/below", mounts) is None


def test_the_mount_around_a_path_is_the_nearest_one() -> None:
    mounts = parse_mount_table(b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /mnt rw - tmpfs b rw\n")
    around = {path: mount_around(path, mounts) for path in ("/mnt/x", "/mnt", "/mntx", "/")}
    assert {path: mount and mount.number for path, mount in around.items()} == {
        "/mnt/x": 2,
        "/mnt": 1,
        "/mntx": 1,
        "/": None,
    }


def test_a_directory_does_not_contain_what_only_begins_with_its_name() -> None:
    assert is_inside("/a/b", "/a")
    assert is_inside("/a", "/")
    assert not is_inside("/ab", "/a")


def test_links_are_followed_in_the_parents_of_a_path_but_not_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "end").symlink_to("/nowhere")
    assert canonical(f"{tmp_path}/link/../link//end/") == f"{tmp_path}/real/end"


@pytest.mark.root
def test_a_real_mount_with_an_awkward_name_is_found(place: Path) -> None:
    awkward = place / "with space\nand\\more"
    awkward.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "some source", str(awkward)], check=True)
    found = mount_at(str(awkward), read_mounts())
    assert found is not None
    assert (found.filesystem, found.source) == ("tmpfs", "some source")
    assert found.device == awkward.stat().st_dev
