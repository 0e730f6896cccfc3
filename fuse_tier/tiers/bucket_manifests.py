"""Manifests in a bucket: written once, read strictly, and with a word about where their small contents are.

That word is metadata of the object (``fuse-tier-packs``), and only saves work: what it leaves out is searched for.
"""

from __future__ import annotations

from fuse_tier.errors import Damaged, MalformedManifest, NotFound
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import MAX_ENCODED_BYTES, Manifest, decode, encode
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_packs import SMALL
from fuse_tier.tiers.bucket_presence import Presence
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_transfer import read_whole
from fuse_tier.tiers.bucket_work import Work


class Manifests:
    """The manifests of one bucket, which messages call ``place``."""

    def __init__(self, objects: Objects, work: Work, presence: Presence, place: str) -> None:
        self._objects = objects
        self._work = work
        self._presence = presence
        self._place = place

    async def write(self, manifest: Manifest) -> bool:
        """Makes a manifest visible; False if there is another one of that number. Its contents are there."""
        small = [blob for blob in manifest.blobs if blob.size < SMALL]
        packs = {spot.pack for spot in self._presence.shelf.find(small).values()}
        content, name = MemoryContent(encode(manifest)), layout.manifest_object(manifest.id)
        metadata = {layout.PACKS_METADATA: layout.packs_text(packs)} if packs else {}

        def attempt(task: Task) -> bool:
            put = task.retry(lambda: self._objects.put(name, content, 0, lambda _: None, task.stop, metadata))
            if put is not None:
                return True
            try:  # an attempt of ours whose answer was lost, or somebody else's
                return read_whole(self._objects, name, MAX_ENCODED_BYTES, task) == content.content
            except (NotFound, Damaged):
                return False

        return await self._work.run(attempt)

    async def read(self, snapshot: SnapshotId) -> Manifest:
        """Raises NotFound, MalformedManifest."""
        name = layout.manifest_object(snapshot)
        try:
            found = await self._work.run(
                lambda task: decode(read_whole(self._objects, name, MAX_ENCODED_BYTES, task))
            )
        except NotFound:
            raise NotFound(f"{snapshot} is not in {self._place}") from None
        except MalformedManifest as error:
            raise MalformedManifest(f"{snapshot} in {self._place}: {error}") from error
        except Damaged as error:
            raise MalformedManifest(str(error)) from error
        if found.id != snapshot:
            raise MalformedManifest(f"the manifest of {snapshot} in {self._place} is that of {found.id}")
        if any(blob.size < SMALL for blob in found.blobs):
            self._presence.ask_for_packs(name)
        return found
