from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.errors import MountError
from fuse_tier.replicate.tree import build_tree, check_new_directory, copy_into, remove_tree
from tests.replicate.conftest import Bench


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(root))
        facts: tuple[object, ...] = (oct(status.st_mode), status.st_uid, status.st_gid)
        if stat.S_ISREG(status.st_mode):
            first = inodes.setdefault(status.st_ino, name)
            facts += (path.read_bytes(), status.st_mtime_ns, first)
        elif stat.S_ISLNK(status.st_mode):
            facts += (os.readlink(path),)
        else:
            facts += (status.st_mtime_ns,)
        found[name] = facts
    return found


async def test_a_tree_built_from_a_manifest_is_the_tree_it_was_taken_of(bench: Bench, tmp_path: Path) -> None:
    deep = bench.tree / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"content")
    (deep / "file").chmod(0o4711)
    os.link(deep / "file", bench.tree / "z")
    (bench.tree / "link").symlink_to("/etc/passwd")
    (bench.tree / "locked").mkdir(mode=0o500)
    os.mkfifo(bench.tree / "pipe", 0o640)
    os.utime(deep, ns=(1, 999_999_999))
    taken = await bench.snapshot()
    before = describe(bench.tree)

    def place(blob: Blob, path: str) -> None:
        copy_into(bench.ram, blob, path)

    build_tree(taken, str(tmp_path / "out"), place)
    assert describe(tmp_path / "out") == before


def test_a_tree_of_directories_without_any_rights_is_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "f").touch()
    (tree / "a" / "b").chmod(0)
    (tree / "a").chmod(0)
    remove_tree(str(tree))
    assert not tree.exists()
    remove_tree(str(tree))


@pytest.mark.parametrize("kind", ["file", "full", "link", "orphan"])
def test_nothing_is_restored_over_what_is_there(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.touch()
    elif kind == "full":
        (target / "something").mkdir(parents=True)
    elif kind == "link":
        target.symlink_to(tmp_path)
    else:
        target = tmp_path / "missing" / "target"
    with pytest.raises(MountError, match=r"target|missing"):
        check_new_directory(str(target))
