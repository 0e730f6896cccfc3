"""A live tree and its pins, and what a daemon and a worker do to them."""

from __future__ import annotations

import os
from pathlib import Path

from fuse_tier.blobs import Blob
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.identity import Identity
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins


class Volume:
    """A live tree, and what its daemon and its worker do to it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.volume: VolumeLayout = layout.volume(Identity("default", "llama", "0"))
        for directory in (self.volume.tree, self.volume.pins, self.volume.remote):
            os.makedirs(directory)
        self.pins = Pins(layout, self.volume)

    def path(self, name: str) -> Path:
        return Path(self.volume.tree) / name

    def inode(self, name: str) -> int:
        return self.path(name).stat().st_ino

    def create(self, name: str, content: bytes) -> int:
        self.path(name).write_bytes(content)
        return self.inode(name)

    def write(self, name: str, content: bytes) -> None:
        """What a daemon does for a job that opens a file for writing."""
        self.pins.detach(self.inode(name))
        self.path(name).write_bytes(content)

    def hash(self, inode: int) -> tuple[os.stat_result, Blob]:
        """What a worker does with a pin."""
        fd = os.open(self.pins.path(inode), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return os.fstat(fd), hash_descriptor(fd)
        finally:
            os.close(fd)

    def seal(self, name: str) -> Blob:
        inode = self.inode(name)
        self.pins.pin(str(self.path(name)), inode)
        known = self.pins.known_blob(inode)
        if known is None:
            hashed, known = self.hash(inode)
            assert self.pins.adopt(inode, hashed, known)
        return known

    def kept(self, blob: Blob) -> bytes:
        return Path(self.layout.blob(blob)).read_bytes()

    def check_every_blob_is_safe(self) -> None:
        """A blob that is a live file's inode has a pin that says so, and is what its name says."""
        live = {path.stat().st_ino for path in Path(self.volume.tree).iterdir()}
        for path in Path(self.layout.blobs).glob("*/*"):
            assert hash_bytes(path.read_bytes()).name == path.name
            inode = path.stat().st_ino
            if inode in live:
                assert self.pins.known_blob(inode) == Blob.parse(path.name)
                assert self.pins.shares_inode(inode)
