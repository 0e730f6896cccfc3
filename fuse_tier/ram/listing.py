"""Manifests as files: what a RAM tier lists.

A manifest appears by one link of a file that is whole, so it is never seen in part. It never replaces another,
unless that is damaged, and so is nothing that could be restored. That its blobs are there is for the caller to
see to. All methods block, in threads.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress

from fuse_tier import failpoints
from fuse_tier.errors import MalformedManifest, NotFound, SnapshotConflict
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.manifest import MAX_ENCODED_BYTES, Manifest, decode
from fuse_tier.ram.content import room_in
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import Reserve

_NUMBER = re.compile(r"[1-9][0-9]{0,18}")


class RamListing:
    """The manifests of one RAM tier; ``place`` is its name in messages."""

    def __init__(self, layout: Layout, place: str) -> None:
        self._layout = layout
        self._place = place
        self._reserve = Reserve(layout)

    def snapshots(self, identity: Identity | None = None) -> list[SnapshotId]:
        """Everything listed, of one volume or of all, in order. Reads names only."""
        identities = self._identities() if identity is None else [identity]
        return sorted(SnapshotId(found, number) for found in identities for number in self._numbers(found))

    def read(self, snapshot: SnapshotId) -> Manifest:
        """Raises NotFound, MalformedManifest."""
        try:
            text = self._text(snapshot)
        except FileNotFoundError:
            raise NotFound(f"{snapshot} is not in the {self._place}") from None
        except OSError as error:
            raise MalformedManifest(f"{snapshot} in the {self._place} cannot be read: {error.strerror}") from error
        manifest = decode(text)
        if manifest.id != snapshot:
            raise MalformedManifest(f"the {self._place} has the manifest of {manifest.id} as {snapshot}")
        return manifest

    def publish(self, snapshot: SnapshotId, text: bytes) -> bool:
        """Lists a manifest; False if that very one is listed already. Raises SnapshotConflict, TierFull.

        Never called twice at the same time.
        """
        path = self._layout.manifest(snapshot)
        temporary = os.path.join(self._layout.incoming, secrets.token_hex(8))
        try:
            with room_in(self._place):
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                self._reserve.write(lambda: _write(temporary, text), len(text))
                failpoints.reached("listing.written")
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    if self._is_readable(snapshot):
                        raise
                    os.replace(temporary, path)
            failpoints.reached("listing.published")
            return True
        except FileExistsError:
            if self._has(snapshot, text):
                return False
            highest = max(self._numbers(snapshot.identity), default=snapshot.number)
            raise SnapshotConflict(
                f"the {self._place} has another snapshot {snapshot} already: take a number above {highest}", highest
            ) from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def remove(self, snapshot: SnapshotId) -> None:
        """Takes a manifest from the list. One that is not there is no error."""
        with suppress(FileNotFoundError):
            os.unlink(self._layout.manifest(snapshot))

    def remove_empty(self) -> None:
        """Removes directories of volumes that list nothing. Never at the same time as ``publish``."""
        for identity in list(self._identities()):
            directory = self._layout.snapshots(identity)
            with suppress(OSError):  # ENOTEMPTY: it lists something
                for _ in range(3):  # replica, workload, namespace
                    os.rmdir(directory)
                    directory = os.path.dirname(directory)

    def _text(self, snapshot: SnapshotId) -> bytes:
        with open(self._layout.manifest(snapshot), "rb", opener=_unlinked) as file:
            return file.read(MAX_ENCODED_BYTES + 1)

    def _has(self, snapshot: SnapshotId, text: bytes) -> bool:
        try:
            return self._text(snapshot) == text
        except OSError:
            return False

    def _is_readable(self, snapshot: SnapshotId) -> bool:
        try:
            self.read(snapshot)
        except (MalformedManifest, NotFound):
            return False
        return True

    def _numbers(self, identity: Identity) -> list[int]:
        numbers = [int(name) for name in _names(self._layout.snapshots(identity)) if _NUMBER.fullmatch(name)]
        return [number for number in numbers if number < 1 << 63]

    def _identities(self) -> Iterator[Identity]:
        root = self._layout.manifests
        for namespace in filter(is_name, _names(root)):
            for workload in filter(is_name, _names(os.path.join(root, namespace))):
                for replica in filter(is_name, _names(os.path.join(root, namespace, workload))):
                    yield Identity(namespace, workload, replica)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write(path: str, text: bytes) -> None:
    with open(path, "wb", opener=_private) as file:
        file.write(text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _unlinked(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
