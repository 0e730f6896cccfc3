from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_tier.fs.nodes import ROOT, Nodes
from fuse_tier.mount.deposits import Depositor, connection_pair


@pytest.fixture
def tree(memory_path: Path) -> Path:
    path = memory_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def nodes(tree: Path) -> Iterator[Nodes]:
    keeper, daemon = connection_pair()
    with keeper, daemon:
        nodes = Nodes(str(tree), Depositor(daemon), inherits=False)
        yield nodes
        nodes.close()


def look_up(nodes: Nodes, parent: int, name: bytes) -> int:
    found = os.stat(name, dir_fd=nodes.directory(parent), follow_symlinks=False)
    nodes.seen(found, parent, name)
    return found.st_ino


def unlink(nodes: Nodes, parent: int, name: bytes) -> None:
    with nodes.removing(parent, name) as directory:
        os.unlink(name, dir_fd=directory)


def fails_stale(nodes: Nodes, inode: int) -> None:
    with pytest.raises(OSError) as caught:
        nodes.status(inode)
    assert caught.value.errno == errno.ESTALE


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_root_is_one_whatever_the_tmpfs_calls_it(nodes: Nodes, tree: Path) -> None:
    assert nodes.number(tree.stat().st_ino) == ROOT
    assert nodes.status(ROOT).st_ino == tree.stat().st_ino


def test_what_the_kernel_has_forgotten_is_dropped(nodes: Nodes, tree: Path) -> None:
    (tree / "file").touch()
    inode = look_up(nodes, ROOT, b"file")
    look_up(nodes, ROOT, b"file")
    nodes.forget([(inode, 1)])
    assert nodes.status(inode).st_ino == inode
    nodes.forget([(inode, 1), (inode, 1), (999, 3)])
    assert len(nodes) == 0
    fails_stale(nodes, inode)


def test_an_unlinked_file_is_reached_until_it_is_forgotten(nodes: Nodes, tree: Path) -> None:
    (tree / "file").write_bytes(b"content")
    inode = look_up(nodes, ROOT, b"file")
    before = open_descriptors()
    unlink(nodes, ROOT, b"file")
    assert nodes.status(inode).st_nlink == 0
    fd = nodes.open(inode, os.O_RDONLY)
    assert os.read(fd, 100) == b"content"
    os.close(fd)
    nodes.forget([(inode, 1)])
    assert open_descriptors() == before


def test_a_removal_that_fails_changes_nothing(nodes: Nodes, tree: Path) -> None:
    (tree / "directory").mkdir()
    (tree / "directory" / "file").touch()
    inode = look_up(nodes, ROOT, b"directory")
    before = open_descriptors()
    with pytest.raises(OSError), nodes.removing(ROOT, b"directory") as directory:
        os.rmdir(b"directory", dir_fd=directory)
    assert open_descriptors() == before
    assert nodes.status(inode).st_ino == inode


def test_a_file_is_reached_by_whichever_of_its_names_is_left(nodes: Nodes, tree: Path) -> None:
    (tree / "a").touch()
    (tree / "b").hardlink_to(tree / "a")
    (tree / "c").hardlink_to(tree / "a")
    inode = look_up(nodes, ROOT, b"a")
    for name in (b"b", b"c"):
        look_up(nodes, ROOT, name)
    for name in (b"b", b"a", b"c"):
        assert nodes.status(inode).st_ino == inode
        unlink(nodes, ROOT, name)
    assert nodes.status(inode).st_nlink == 0


def test_a_file_whose_known_name_is_gone_is_reached_by_its_other_once_that_is_known(nodes: Nodes, tree: Path) -> None:
    (tree / "a").touch()
    (tree / "b").hardlink_to(tree / "a")
    inode = look_up(nodes, ROOT, b"a")
    before = open_descriptors()
    unlink(nodes, ROOT, b"a")
    assert nodes.status(inode).st_nlink == 1
    assert look_up(nodes, ROOT, b"b") == inode
    assert open_descriptors() == before
    assert nodes.status(inode).st_nlink == 1


def test_what_is_below_a_renamed_directory_is_still_reached(nodes: Nodes, tree: Path) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    a = look_up(nodes, ROOT, b"a")
    b = look_up(nodes, a, b"b")
    file = look_up(nodes, b, b"file")
    with nodes.renaming((ROOT, b"a"), (ROOT, b"renamed"), exchange=False) as (old, new):
        os.rename(b"a", b"renamed", src_dir_fd=old, dst_dir_fd=new)
    assert nodes.status(file).st_ino == file
    nodes.forget([(inode, 0) for inode in (a, b)])
    assert nodes.status(b).st_ino == b


def test_exchanged_names_lead_to_each_others_files(nodes: Nodes, tree: Path) -> None:
    for name in ("a", "b"):
        (tree / name).touch()
    a, b = look_up(nodes, ROOT, b"a"), look_up(nodes, ROOT, b"b")
    with nodes.renaming((ROOT, b"a"), (ROOT, b"b"), exchange=True):
        (tree / "a").rename(tree / "c")
        (tree / "b").rename(tree / "a")
        (tree / "c").rename(tree / "b")
    assert (nodes.name(a) or ())[1:] == (b"b",)
    assert (nodes.name(b) or ())[1:] == (b"a",)
    assert nodes.status(a).st_ino == a


def test_a_name_that_leads_to_another_file_than_it_did_is_stale(nodes: Nodes, tree: Path) -> None:
    (tree / "file").touch()
    inode = look_up(nodes, ROOT, b"file")
    (tree / "other").touch()
    (tree / "other").rename(tree / "file")
    fails_stale(nodes, inode)
    with pytest.raises(OSError):
        nodes.open(inode, os.O_RDONLY)
    with pytest.raises(OSError), nodes.path(inode):
        pytest.fail("must not get here")


def test_a_directory_that_became_a_symlink_is_not_entered(nodes: Nodes, tree: Path, tmp_path: Path) -> None:
    (tree / "directory").mkdir()
    inode = look_up(nodes, ROOT, b"directory")
    (tree / "directory").rmdir()
    (tree / "directory").symlink_to(tmp_path)
    with pytest.raises(OSError):
        nodes.directory(inode)
