"""A daemon and a worker at the same files at once."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes
from tests.ram.pinned import Volume


def test_a_daemon_can_detach_while_a_new_worker_clears_up(volume: Volume) -> None:
    content = os.urandom(16 << 20)
    inode = volume.create("weights", content)
    blob = volume.seal("weights")
    ended = threading.Event()

    def clear() -> None:
        while not ended.is_set():
            for name in os.listdir(volume.layout.incoming):
                os.unlink(os.path.join(volume.layout.incoming, name))

    worker = threading.Thread(target=clear)
    worker.start()
    try:
        volume.pins.detach(inode)
    finally:
        ended.set()
        worker.join()
    volume.path("weights").write_bytes(b"4567")
    assert hash_bytes(volume.kept(blob)) == blob


def test_a_daemon_and_a_worker_can_race_for_the_same_files(volume: Volume) -> None:
    """A daemon writes to files as fast as it can while a worker seals them; what was adopted stays right."""
    names = [f"file{number}" for number in range(4)]
    for name in names:
        volume.create(name, b"start" + name.encode())
    # Stands for the worker's `version` calls: no pin is made of a file that has a writer.
    writing = threading.Lock()
    enough = threading.Event()

    def write() -> None:
        for turn in itertools.count():
            for name in names:
                with writing:
                    volume.write(name, b"%d of " % turn + name.encode())
            if enough.is_set():
                return

    def seal() -> set[Blob]:
        kept: set[Blob] = set()
        while len(kept) < 30 and not written.done():
            for name in names:
                inode = volume.inode(name)
                with writing:
                    volume.pins.pin(str(volume.path(name)), inode)
                if volume.pins.known_blob(inode) is None:
                    kept |= _hash_and_adopt(volume, inode)
        return kept

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            kept = seal()
        finally:
            enough.set()
        written.result()
    assert len(kept) >= 30
    for blob in kept:
        assert hash_bytes(volume.kept(blob)) == blob
    volume.check_every_blob_is_safe()


def _hash_and_adopt(volume: Volume, inode: int) -> set[Blob]:
    try:
        hashed, blob = volume.hash(inode)
    except FileNotFoundError:
        return set()
    return {blob} if volume.pins.adopt(inode, hashed, blob) else set()
