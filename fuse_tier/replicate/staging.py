"""A directory outside the RAM tier that content is fetched into before a plain tree is made of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound, TierFull
from fuse_tier.hashing import hash_descriptor
from fuse_tier.replicate.tree import copy_into


@dataclass(slots=True)
class _Landing:
    fd: int
    blob: Blob
    path: str

    def accept(self) -> None:
        """Names what landed, if it is the blob. Raises Damaged."""
        found = hash_descriptor(self.fd)
        if found != self.blob:
            self.discard()
            raise Damaged(f"expected {self.blob}, received {found}")
        os.close(self.fd)
        os.rename(f"{self.path}.part", self.path)

    def discard(self) -> None:
        """Removes what landed."""
        os.close(self.fd)
        os.unlink(f"{self.path}.part")


class StagingDirectory:
    """A Sink and a Source beside the place where a tree shall stand, so that files get there by rename."""

    def __init__(self, root: str) -> None:
        self.root = root

    def make(self) -> None:
        """Raises FileExistsError when it is there already."""
        os.mkdir(self.root, 0o700)

    def create(self, blob: Blob) -> _Landing:
        """Makes room for a blob. Raises TierFull."""
        path = self._path(blob)
        fd = os.open(f"{path}.part", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        landing = _Landing(fd, blob, path)
        try:
            if blob.size:
                os.posix_fallocate(fd, 0, blob.size)
        except OSError as error:
            landing.discard()
            raise TierFull(f"no room for {blob.size} bytes in {self.root}: {error.strerror}") from error
        return landing

    def open(self, blob: Blob) -> int:
        """A descriptor of content that is here. Raises NotFound."""
        try:
            return os.open(self._path(blob), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"{blob} was not fetched") from error

    def place(self, blob: Blob, path: str) -> None:
        """Makes a file of the tree. Equal files share nothing afterwards."""
        copy_into(self, blob, path)

    def _path(self, blob: Blob) -> str:
        return os.path.join(self.root, blob.name)
