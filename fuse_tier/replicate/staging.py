"""A directory outside the RAM tier that content is fetched into before a plain tree is made of it.

The tree gets its name when it is whole; whatever ends this before leaves nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound, TierError, TierFull
from fuse_tier.files import write_new
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.tree import build_tree, copy_into, remove_tree


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

    def take(self, blob: Blob, content: memoryview) -> None:
        """Keeps content that is all in memory, if it is the blob. Raises Damaged, TierFull."""
        found = hash_bytes(content)
        if found != blob:
            raise Damaged(f"expected {blob}, received {found}")
        path = self._path(blob)
        try:
            write_new(f"{path}.part", content)
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(f"{path}.part")
            raise TierFull(f"no room for {blob.size} bytes in {self.root}: {error.strerror}") from error
        os.rename(f"{path}.part", path)

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


Fetch = Callable[[StagingDirectory], Awaitable[Mapping[Blob, TierError]]]
"""Brings the content of a snapshot into a staging directory; gives what could not be had, with the reason."""


async def make_tree(manifest: Manifest, target: str, fetch: Fetch) -> None:
    """Makes the tree of a snapshot at ``target``, which ``check_new_directory`` has seen.

    Raises what ``fetch`` does, TierError when some content could not be had, OSError.
    """
    staging = StagingDirectory(f"{target}.restoring-{secrets.token_hex(4)}")
    tree = os.path.join(staging.root, "tree")
    try:
        staging.make()
        failed = await fetch(staging)
        if failed:
            blob, error = min(failed.items(), key=lambda item: item[0])
            raise type(error)(
                f"{manifest.id}: {len(failed)} of {len(manifest.blobs)} contents could not be had intact "
                f"({blob}: {error}): nothing was restored; another snapshot may be whole"
            )
        await trio.to_thread.run_sync(build_tree, manifest, tree, staging.place)
        await trio.to_thread.run_sync(os.rename, tree, target)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove_tree, staging.root)
