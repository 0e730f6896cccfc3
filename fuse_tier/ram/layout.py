"""Where everything stands on a node's RAM tier.

::

    <root>/fuse-tier.json                    marker: this directory is ours; format, cluster and node
    <root>/node.lock                         flock: the node that runs on it; holds its pid
    <root>/reserve                           room for small files when all else is full; see room.py
    <root>/warmed.json                       what was made ready of the memory below; see warm.py
    <root>/scrubbed                          when all content was last read again; see scrubbed.py
    <root>/blobs/<2 hex>/<blob name>         immutable content, node-wide
    <root>/incoming/<random>                 content on its way in; removed at the start of a worker
    <root>/spares/<bytes>.<random>           pages for files that are made; see spares.py
    <root>/manifests/<ns>/<workload>/<replica>/<number>
    <root>/volumes/<ns>/<workload>/<replica>/
        tree/                                what the job sees at its mount
        pins/<inode number>                  see pins.py
        remote/<inode number>                symlink to the name of the blob that this file shall hold: its
                                             content is not here, and it is opened only after it is; see remote.py
        remote/<inode number>.file           the same inode as that file, so that it is found without its path
        lock                                 flock: changes of pins
        keeper                               flock: the keeper that has it mounted; where that is, and how it is found
        volume.json                          lineage of the tree, by atomic replacement
        order.json                           what the job's replicator.yaml said, and how far the answer has come
        staged/ swept/                       what comes to the root of the tree and what was taken away from it: names
                                             of the file protocol only; see fs/arranging.py

Nothing else keeps state: what a process knows beyond this it can derive.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fuse_tier.blobs import Blob
from fuse_tier.identity import Identity, SnapshotId


@dataclass(frozen=True, slots=True)
class VolumeLayout:
    """The paths of one volume."""

    root: str

    @property
    def tier(self) -> Layout:
        """The RAM tier that it is on."""
        return Layout(os.path.normpath(os.path.join(self.root, *[os.pardir] * 4)))

    @property
    def tree(self) -> str:
        """The live tree."""
        return os.path.join(self.root, "tree")

    @property
    def pins(self) -> str:
        """Directory of pins, by inode number."""
        return os.path.join(self.root, "pins")

    @property
    def remote(self) -> str:
        """Directory of placeholders, by inode number."""
        return os.path.join(self.root, "remote")

    @property
    def lock(self) -> str:
        """Held (flock) while a pin is changed."""
        return os.path.join(self.root, "lock")

    @property
    def keeper(self) -> str:
        """Held (flock) by the keeper that has it mounted, and by its daemon."""
        return os.path.join(self.root, "keeper")

    @property
    def record(self) -> str:
        """The lineage of the live tree."""
        return os.path.join(self.root, "volume.json")

    @property
    def order(self) -> str:
        """What a job said by the file protocol since its volume was mounted."""
        return os.path.join(self.root, "order.json")

    @property
    def lives(self) -> str:
        """Which containers of its pod have made names at its root (``lives.py``)."""
        return os.path.join(self.root, "lives.json")

    @property
    def staged(self) -> str:
        """What is about to appear at the root of the tree."""
        return os.path.join(self.root, "staged")

    @property
    def swept(self) -> str:
        """What was moved away from the root of the tree."""
        return os.path.join(self.root, "swept")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one RAM tier. ``root`` is absolute."""

    root: str

    @property
    def marker(self) -> str:
        """Says that the directory is ours."""
        return os.path.join(self.root, "fuse-tier.json")

    @property
    def node_lock(self) -> str:
        """Held (flock) by the node that runs on it."""
        return os.path.join(self.root, "node.lock")

    @property
    def reserve(self) -> str:
        """Room for small files when all else is full."""
        return os.path.join(self.root, "reserve")

    @property
    def warmed(self) -> str:
        """How much memory was made ready."""
        return os.path.join(self.root, "warmed.json")

    @property
    def scrubbed(self) -> str:
        """When all content was last read again."""
        return os.path.join(self.root, "scrubbed")

    @property
    def term(self) -> str:
        """The highest term of a coordinator that this node has heard of (``replicate/terms.py``)."""
        return os.path.join(self.root, "coordinator-term")

    @property
    def marks(self) -> str:
        """Steps that are not to be restored."""
        return os.path.join(self.root, "marks.json")

    @property
    def blobs(self) -> str:
        """Parent of the 256 directories of blobs."""
        return os.path.join(self.root, "blobs")

    @property
    def incoming(self) -> str:
        """Content that has no name yet."""
        return os.path.join(self.root, "incoming")

    @property
    def spares(self) -> str:
        """Files that nobody has made yet."""
        return os.path.join(self.root, "spares")

    @property
    def manifests(self) -> str:
        """Parent of all volumes' manifests."""
        return os.path.join(self.root, "manifests")

    @property
    def volumes(self) -> str:
        """Parent of all local volumes."""
        return os.path.join(self.root, "volumes")

    def blob(self, blob: Blob) -> str:
        """Where a blob stands, if it is here."""
        return os.path.join(self.blobs, blob.digest[:1].hex(), blob.name)

    def manifest(self, snapshot: SnapshotId) -> str:
        """Where a manifest stands, if it is here."""
        return os.path.join(self._of(self.manifests, snapshot.identity), str(snapshot.number))

    def snapshots(self, identity: Identity) -> str:
        """The directory of one volume's manifests."""
        return self._of(self.manifests, identity)

    def volume(self, identity: Identity) -> VolumeLayout:
        """The paths of one local volume."""
        return VolumeLayout(self._of(self.volumes, identity))

    @staticmethod
    def _of(parent: str, identity: Identity) -> str:
        return os.path.join(parent, identity.namespace, identity.workload, identity.replica)
