from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.remote import Refill, drop, give_up, lost_files, mark, remote_files
from fuse_tier.ram.tmpfs import create_directories
from tests.harness.mapping import mapped

CONTENT = b"content" * 1000


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file of a tree whose content is a blob."""

    layout: Layout
    volume: VolumeLayout
    pins: Pins
    path: Path
    blob: Blob

    @property
    def inode(self) -> int:
        return self.path.stat().st_ino

    def mark(self) -> bool:
        return mark(self.layout, self.volume, self.inode, self.blob)

    def give_up(self) -> int:
        return give_up(self.layout, self.volume, self.pins, self.inode, self.blob)

    def refill(self, content: bytes) -> None:
        incoming = Refill(self.volume, self.inode, "ram of a").create(self.blob)
        os.pwrite(incoming.fd, content, 0)
        incoming.accept()


@pytest.fixture
def sealed(memory_path: Path) -> Sealed:
    layout = Layout(str(memory_path))
    create_directories(layout)
    volume = layout.volume(Identity("default", "job", "0"))
    for directory in (volume.tree, volume.pins, volume.remote):
        os.makedirs(directory)
    path = Path(volume.tree, "file")
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 2))
    pins = Pins(layout, volume)
    pins.pin(str(path), path.stat().st_ino)
    blob = hash_bytes(CONTENT)
    assert pins.adopt(path.stat().st_ino, path.stat(), blob)
    return Sealed(layout, volume, pins, path, blob)


def test_content_is_given_up_and_comes_back_into_the_same_file(sealed: Sealed) -> None:
    before = sealed.path.stat()
    assert sealed.mark()
    assert sealed.give_up() >= len(CONTENT)
    assert remote_files(sealed.volume) == {sealed.inode: sealed.blob}
    assert sealed.path.stat().st_blocks == 0
    sealed.refill(CONTENT)
    after = sealed.path.stat()
    assert sealed.path.read_bytes() == CONTENT
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert remote_files(sealed.volume) == {}


@pytest.mark.parametrize("writable", [False, True])
def test_what_somebody_has_mapped_is_not_given_up(sealed: Sealed, writable: bool) -> None:
    with mapped(sealed.path, writable=writable):
        assert not sealed.mark()
    assert remote_files(sealed.volume) == {}
    assert sealed.mark()


def test_damaged_content_does_not_come_back(sealed: Sealed) -> None:
    sealed.mark()
    sealed.give_up()
    with pytest.raises(Damaged):
        sealed.refill(CONTENT[::-1])
    assert remote_files(sealed.volume) == {sealed.inode: sealed.blob}
    assert sealed.path.stat().st_size == len(CONTENT)


def test_what_is_lost_is_told_from_what_the_bucket_has(sealed: Sealed) -> None:
    sealed.mark()
    sealed.give_up()
    assert lost_files(sealed.volume) == {}
    marker = Path(sealed.volume.remote, str(sealed.inode))
    marker.unlink()
    marker.symlink_to(sealed.layout.blob(sealed.blob))  # as a restore marks what no place had
    assert lost_files(sealed.volume) == {sealed.blob: [sealed.inode]}
    assert remote_files(sealed.volume) == {sealed.inode: None}
    sealed.refill(CONTENT)
    assert lost_files(sealed.volume) == {}


def test_what_was_dropped_to_be_written_anew_is_neither_emptied_nor_filled(sealed: Sealed) -> None:
    sealed.mark()
    drop(sealed.volume, sealed.inode)
    assert sealed.give_up() == 0
    with pytest.raises(NotFound):
        sealed.refill(CONTENT)
    assert sealed.path.read_bytes() == CONTENT
    drop(sealed.volume, sealed.inode)  # nothing to do


def test_who_drops_it_waits_until_it_is_filled(sealed: Sealed) -> None:
    sealed.mark()
    sealed.give_up()
    incoming = Refill(sealed.volume, sealed.inode, "ram of a").create(sealed.blob)
    with ThreadPoolExecutor(1) as threads:
        dropped = threads.submit(drop, sealed.volume, sealed.inode)
        os.pwrite(incoming.fd, CONTENT, 0)
        assert not dropped.done()
        incoming.accept()
        dropped.result()
    sealed.path.write_bytes(b"new")
    assert sealed.path.read_bytes() == b"new"
