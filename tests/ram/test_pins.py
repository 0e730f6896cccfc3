"""What is pinned stays what it was, whatever becomes of the live file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_tier.hashing import hash_bytes
from tests.ram.pinned import Volume


def test_a_sealed_file_and_its_blob_are_one_inode_and_cost_nothing(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    assert blob == hash_bytes(b"0123")
    assert os.stat(volume.layout.blob(blob)).st_ino == inode
    assert volume.path("weights").stat().st_nlink == 2
    assert volume.pins.shares_inode(inode)
    assert volume.pins.known_blob(inode) == blob
    assert os.listdir(volume.layout.incoming) == []
    assert os.listdir(volume.volume.pins) == [str(inode)]


def test_content_never_changes_after_a_detach_and_the_live_file_keeps_its_inode(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    volume.write("weights", b"4567")
    assert volume.kept(blob) == b"0123"
    assert volume.inode("weights") == inode
    assert volume.path("weights").stat().st_nlink == 1
    assert volume.pins.known_blob(inode) is None
    assert not volume.pins.shares_inode(inode)
    assert os.listdir(volume.volume.pins) == []


def test_a_file_can_be_sealed_and_written_again_and_again(volume: Volume) -> None:
    volume.create("weights", b"")
    blobs = []
    for number in range(5):
        volume.write("weights", b"%d" % number)
        blobs.append(volume.seal("weights"))
    assert [volume.kept(blob) for blob in blobs] == [b"0", b"1", b"2", b"3", b"4"]


def test_equal_content_is_kept_once_and_either_file_may_be_written(volume: Volume) -> None:
    first, second = volume.create("a", b"same"), volume.create("b", b"same")
    blob = volume.seal("a")
    assert volume.seal("b") == blob
    assert volume.pins.shares_inode(first)
    assert not volume.pins.shares_inode(second)
    assert volume.path("b").stat().st_nlink == 1
    volume.write("b", b"else")
    assert volume.kept(blob) == b"same"
    assert volume.pins.known_blob(first) == blob
    volume.write("a", b"more")
    assert volume.kept(blob) == b"same"
    assert volume.pins.known_blob(first) is None


def test_detaching_what_is_not_pinned_does_nothing(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.detach(inode)
    assert volume.path("weights").read_bytes() == b"0123"
    assert not volume.pins.shares_inode(inode)
    assert volume.pins.known_blob(inode) is None


def test_a_write_before_the_hash_leaves_a_copy_that_is_adopted(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    assert volume.pins.pin(str(volume.path("weights")), inode)
    volume.write("weights", b"4567")
    hashed, blob = volume.hash(inode)
    assert volume.pins.adopt(inode, hashed, blob)
    assert blob == hash_bytes(b"0123")
    assert volume.kept(blob) == b"0123"
    assert volume.pins.known_blob(inode) is None
    volume.write("weights", b"89ab")
    assert volume.kept(blob) == b"0123"


def test_what_was_hashed_while_it_was_written_is_not_adopted(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.pin(str(volume.path("weights")), inode)
    hashed, blob = volume.hash(inode)
    volume.write("weights", b"4567")
    assert not volume.pins.adopt(inode, hashed, blob)
    assert not os.path.exists(volume.layout.blob(blob))
    hashed, blob = volume.hash(inode)
    assert volume.pins.adopt(inode, hashed, blob)
    assert volume.kept(blob) == b"0123"


def test_pinning_again_says_that_it_is_kept_and_a_copy_gives_way_to_what_the_file_is(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    path = str(volume.path("weights"))
    assert volume.pins.pin(path, inode)
    assert not volume.pins.pin(path, inode)
    volume.write("weights", b"4567")
    assert volume.pins.pin(path, inode)
    assert volume.hash(inode)[1] == hash_bytes(b"4567")


def test_a_name_that_another_file_has_taken_is_not_pinned(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.create("weights.tmp", b"4567")
    volume.path("weights.tmp").rename(volume.path("weights"))
    with pytest.raises(FileNotFoundError, match="another file"):
        volume.pins.pin(str(volume.path("weights")), inode)
    assert os.listdir(volume.volume.pins) == []
    assert volume.path("weights").stat().st_nlink == 1
    with pytest.raises(FileNotFoundError):
        volume.pins.pin(str(volume.path("never was")), inode)


def test_a_pin_that_came_too_late_is_taken_back_but_never_one_that_a_write_needs(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    volume.pins.pin(str(volume.path("weights")), inode)
    volume.pins.unpin(inode)
    volume.pins.unpin(inode)
    assert volume.path("weights").stat().st_nlink == 1
    blob = volume.seal("weights")
    volume.pins.unpin(inode)
    volume.pins.forget(inode)
    volume.write("weights", b"4567")
    assert volume.kept(blob) == b"0123"


def test_pins_of_files_that_are_gone_are_forgotten_once_nothing_depends_on_them(volume: Volume) -> None:
    shared, equal = volume.create("a", b"same"), volume.create("b", b"same")
    blob = volume.seal("a")
    volume.seal("b")
    for name in ("a", "b"):
        volume.path(name).unlink()
    volume.pins.forget(shared)
    volume.pins.forget(equal)
    assert os.listdir(volume.volume.pins) == [str(shared)]
    os.unlink(volume.layout.blob(blob))
    volume.pins.forget(shared)
    assert os.listdir(volume.volume.pins) == []


def test_a_deleted_file_that_is_open_still_can_be_opened_for_writing_safely(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    fd = os.open(volume.path("weights"), os.O_RDONLY)
    try:
        volume.path("weights").unlink()
        volume.pins.forget(inode)
        volume.pins.detach(inode)
        Path(f"/proc/self/fd/{fd}").write_bytes(b"4567")
    finally:
        os.close(fd)
    assert volume.kept(blob) == b"0123"


def test_a_collected_blob_leaves_a_file_that_can_be_written_and_sealed_again(volume: Volume) -> None:
    inode = volume.create("weights", b"0123")
    blob = volume.seal("weights")
    os.unlink(volume.layout.blob(blob))
    assert volume.pins.known_blob(inode) is None
    assert not volume.pins.shares_inode(inode)
    assert volume.seal("weights") == blob
    os.unlink(volume.layout.blob(blob))
    volume.write("weights", b"4567")
    assert not os.path.exists(volume.layout.blob(blob))
    assert volume.kept(volume.seal("weights")) == b"4567"


def test_a_blob_of_the_wrong_size_gives_way_to_the_live_content(volume: Volume) -> None:
    blob = hash_bytes(b"0123")
    Path(volume.layout.blob(blob)).write_bytes(b"01")
    volume.create("weights", b"0123")
    assert volume.seal("weights") == blob
    assert volume.kept(blob) == b"0123"


def test_a_hard_link_is_the_same_file(volume: Volume) -> None:
    volume.create("a", b"0123")
    os.link(volume.path("a"), volume.path("b"))
    blob = volume.seal("a")
    assert volume.seal("b") == blob
    assert volume.path("b").stat().st_nlink == 3
    volume.write("b", b"4567")
    assert volume.path("a").read_bytes() == b"4567"
    assert volume.path("a").stat().st_nlink == 2
    assert volume.kept(blob) == b"0123"


def test_a_detach_without_room_changes_nothing(volume: Volume) -> None:
    inode = volume.create("weights", b"")
    os.truncate(volume.path("weights"), 1 << 50)  # sparse: its copy does not fit anywhere
    assert volume.pins.pin(str(volume.path("weights")), inode)
    with pytest.raises(OSError, match="No space left"):
        volume.pins.detach(inode)
    assert os.listdir(volume.volume.pins) == [str(inode)]
    assert volume.pins.shares_inode(inode)
    os.truncate(volume.path("weights"), 0)
