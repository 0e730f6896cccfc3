from __future__ import annotations

import os
from pathlib import Path

from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity
from fuse_tier.ram.arrival import Arrivals, coming_files, expect
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.pins import Pins
from fuse_tier.ram.spares import Spares

CONTENT = b"content" * 1000


def test_what_a_restore_brings_lands_in_memory_that_was_kept_and_in_the_file_that_waits_for_it(
    layout: Layout,
) -> None:
    volume = layout.volume(Identity("default", "job", "0"))
    for directory in (volume.tree, volume.pins, volume.remote):
        os.makedirs(directory)
    path, blob, spares = Path(volume.tree, "file"), hash_bytes(CONTENT), Spares(layout)
    path.touch()
    os.truncate(path, len(CONTENT))
    expect(volume, blob, str(path))
    for _ in range(2):
        with spares.begin_piece() as piece:
            assert piece.finish()
    waiting = coming_files(volume)
    assert waiting == {blob: [path.stat().st_ino]}
    incoming = Arrivals(layout, volume, Pins(layout, volume), waiting, "ram of a").create(blob)
    assert spares.pieces() == 1
    os.pwrite(incoming.fd, CONTENT, 0)
    incoming.accept()
    assert path.read_bytes() == CONTENT
    assert coming_files(volume) == {}


def test_what_is_left_of_an_earlier_file_with_the_same_inode_gives_way(layout: Layout) -> None:
    volume = layout.volume(Identity("default", "job", "0"))
    for directory in (volume.tree, volume.pins, volume.remote):
        os.makedirs(directory)
    path, blob, pins = Path(volume.tree, "file"), hash_bytes(CONTENT), Pins(layout, volume)
    path.touch()
    os.truncate(path, len(CONTENT))
    expect(volume, blob, str(path))
    inode = path.stat().st_ino
    os.symlink("gone", pins.path(inode))
    incoming = Arrivals(layout, volume, pins, coming_files(volume), "ram of a").create(blob)
    os.pwrite(incoming.fd, CONTENT, 0)
    incoming.accept()
    assert pins.known_blob(inode) == blob
    assert os.listdir(layout.incoming) == []
