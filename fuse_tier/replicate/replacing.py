"""A volume's live tree gives way to another one, of content that the RAM tier has or that is still to come.

It fetches nothing. Whatever interrupts it, the volume has the whole old tree, the whole new one, or none.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection

from fuse_tier import failpoints
from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged
from fuse_tier.hashing import hash_descriptor
from fuse_tier.manifest import Manifest
from fuse_tier.ram.arrival import expect
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.pins import link_to_blob
from fuse_tier.replicate.tree import build_tree, copy_into, make_placeholder, remove_tree
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.ram import RamTier


class Trees:
    """Makes live trees on one node's RAM tier. All of it blocks: call it in a thread."""

    def __init__(self, layout: Layout, ram: RamTier) -> None:
        self._layout = layout
        self._ram = ram

    def replace(
        self, volume: Volume, manifest: Manifest | None, failed: Collection[Blob], coming: Collection[Blob]
    ) -> None:
        """Makes the tree of a snapshot, or an empty one for None, where the volume's live tree was.

        Of content that failed or is still coming only placeholders stand there; all else the RAM tier must have.
        """
        self.clear(volume)
        failpoints.reached("restore.cleared")
        fresh = f"{volume.layout.tree}.new"
        remove_tree(fresh)
        if manifest is None:
            os.mkdir(fresh, 0o777)
            os.chmod(fresh, 0o777)  # noqa: S103 - a pod's user is not known here; the mount belongs to one pod alone
        else:
            build_tree(manifest, fresh, lambda blob, path: self._place(volume, blob, path, failed, coming))
        failpoints.reached("restore.built")
        os.rename(fresh, volume.layout.tree)

    def build(self, volume: Volume, manifest: Manifest, target: str) -> None:
        """Makes the tree of a snapshot at ``target`` beside the live tree, of content that the RAM tier has."""
        remove_tree(target)
        build_tree(manifest, target, lambda blob, path: self._place(volume, blob, path, (), ()))

    def clear(self, volume: Volume) -> None:
        """Takes the tree away. Before another is made: its inodes are those of the blobs that that one links."""
        if os.path.exists(volume.layout.record):
            os.unlink(volume.layout.record)
        if os.path.exists(volume.layout.tree):
            trash = os.path.join(self._layout.incoming, f"tree-{secrets.token_hex(8)}")
            os.rename(volume.layout.tree, trash)
            remove_tree(trash)
        for directory in (volume.layout.pins, volume.layout.remote):
            remove_tree(directory)
        volume.make_directories()

    def _place(
        self, volume: Volume, blob: Blob, path: str, failed: Collection[Blob], coming: Collection[Blob]
    ) -> None:
        if blob in coming:
            make_placeholder(blob, path)
            expect(volume.layout, blob, path)
            return
        if blob in failed:
            make_placeholder(blob, path)
            inode = os.lstat(path).st_ino
            os.link(path, os.path.join(volume.layout.remote, f"{inode}.file"))
            link_to_blob(self._layout, self._layout.blob(blob), os.path.join(volume.layout.remote, str(inode)))
            return
        kept = self._layout.blob(blob)
        os.link(kept, path)
        status = os.lstat(path)
        # In this order: a job whose file it was may have had it copied away since the link (pins.py).
        if status.st_nlink == 2 and os.lstat(kept).st_ino == status.st_ino:
            link_to_blob(self._layout, kept, volume.pins.path(status.st_ino))
            return
        os.unlink(path)  # another file is this inode already: two files must never share one
        try:
            self._copy(blob, path)
        except Damaged:
            # The job whose file it is may have written to it meanwhile: a second look finds the copy of what it was.
            self._copy(blob, path)

    def _copy(self, blob: Blob, path: str) -> None:
        copy_into(self._ram, blob, path)
        try:
            with open(path, "rb") as copied:
                found = hash_descriptor(copied.fileno())
            if found != blob:
                raise Damaged(f"content of {blob} is {found} in the {self._ram.place}: another source is needed")
        except Damaged:
            os.unlink(path)
            raise
