"""A directory outside the RAM tier that content is fetched into before a plain tree is made of it.

The tree gets its name when it is whole; whatever ends this before leaves nothing.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, NotFound, TierError, TierFull
from fuse_tier.files import write_new
from fuse_tier.hashing import hash_bytes, hash_descriptor
from fuse_tier.manifest import Kind, Manifest
from fuse_tier.replicate.tree import build_tree, copy_into, remove_tree


@dataclass(slots=True)
class _Landing:
    fd: int
    blob: Blob
    path: str

    def accept(self) -> None:
        """Names what landed, if it is the blob. Raises Damaged."""
        try:
            found = hash_descriptor(self.fd)
            if found != self.blob:
                raise Damaged(f"expected {self.blob}, received {found}")
        except Damaged:
            self.discard()
            raise
        os.close(self.fd)
        os.rename(f"{self.path}.part", self.path)

    def discard(self) -> None:
        """Removes what landed."""
        os.close(self.fd)
        os.unlink(f"{self.path}.part")


class StagingDirectory:
    """A Sink and a Source beside the place where a tree shall stand, so that files get there by rename."""

    def __init__(self, root: str, uses: Mapping[Blob, int] | None = None) -> None:
        """``uses``: how many files of the tree have each content."""
        self.root = root
        self._left = Counter(uses or {})

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
            write_new(path, content)
        except FileExistsError:
            return
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise TierFull(f"no room for {blob.size} bytes in {self.root}: {error.strerror}") from error

    def open(self, blob: Blob) -> int:
        """A descriptor of content that is here. Raises NotFound."""
        try:
            return os.open(self._path(blob), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"{blob} was not fetched") from error

    def place(self, blob: Blob, path: str) -> None:
        """Makes a file of the tree. Equal files share nothing afterwards: the last of them is what was fetched."""
        self._left[blob] -= 1
        if self._left[blob]:
            copy_into(self, blob, path)
        else:
            os.rename(self._path(blob), path)

    def _path(self, blob: Blob) -> str:
        return os.path.join(self.root, blob.name)


Fetch = Callable[[StagingDirectory], Awaitable[Mapping[Blob, TierError]]]
"""Brings the content of a snapshot into a staging directory; gives what could not be had, with the reason."""


async def make_tree(manifest: Manifest, target: str, fetch: Fetch, *, partial: bool = False) -> Manifest:
    """Makes the tree of a snapshot at ``target``, which ``check_new_directory`` has seen; gives what stands there.

    Raises what ``fetch`` does, TierError when some content could not be had, OSError. A ``partial`` tree lacks the
    files whose content is damaged or gone; what could be had later is an error all the same.
    """
    uses = Counter(entry.blob for entry in manifest.entries if entry.blob is not None)
    staging = StagingDirectory(f"{target}.restoring-{secrets.token_hex(4)}", uses)
    tree = os.path.join(staging.root, "tree")
    try:
        staging.make()
        failed = await fetch(staging)
        if failed and not (partial and all(_is_final(error) for error in failed.values())):
            raise _lacking(manifest, failed)
        manifest = without(manifest, failed)
        await trio.to_thread.run_sync(build_tree, manifest, tree, staging.place)
        await trio.to_thread.run_sync(os.rename, tree, target)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove_tree, staging.root)
    return manifest


def without(manifest: Manifest, lost: Collection[Blob]) -> Manifest:
    """A snapshot less the files that have some content, under all of their names."""
    gone = {entry.path for entry in manifest.entries if entry.blob in lost}
    gone |= {entry.path for entry in manifest.entries if entry.kind is Kind.HARDLINK and entry.target in gone}
    return replace(manifest, entries=tuple(entry for entry in manifest.entries if entry.path not in gone))


def lost_paths(whole: Manifest, kept: Manifest) -> tuple[str, ...]:
    """What the tree lacks."""
    there = {entry.path for entry in kept.entries}
    return tuple(os.fsdecode(entry.path) for entry in whole.entries if entry.path not in there)


def _lacking(manifest: Manifest, failed: Mapping[Blob, TierError]) -> TierError:
    first, *others = lost_paths(manifest, without(manifest, failed))
    files = f"{first!r} and {len(others)} more" if others else repr(first)
    # What may pass is told first: then it pays to try again.
    blob, error = min(failed.items(), key=lambda item: (_is_final(item[1]), item[0]))
    final = "nothing was restored; another snapshot may be whole, and --partial restores what is"
    advice = final if _is_final(error) else "nothing was restored: try again later"
    return type(error)(f"{manifest.id}: the content of {files} could not be had intact ({blob}: {error}): {advice}")


def _is_final(error: TierError) -> bool:
    return isinstance(error, Damaged | NotFound)
