"""Small texts beside the manifests of a bucket, for those who say something about several of them.

Owns where they stand and that one is written once. What they say is their writers' business; nothing here is ever
collected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from fuse_tier.errors import Damaged, NotFound
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_listing import list_all
from fuse_tier.tiers.bucket_many import Removable, Removal, heads, mark_used, remove
from fuse_tier.tiers.bucket_objects import Objects
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_transfer import read_whole
from fuse_tier.tiers.bucket_work import Work

_LONGEST: Final = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Document:
    """A document as a listing tells of it."""

    name: str
    size: int  # bytes
    created: float  # seconds since 1970, by the service's clock
    generation: int


class Documents:
    """Names are paths of letters, digits, ``.``, ``_`` and ``-``. All methods raise TierUnavailable, TierRefused,
    and InvalidRequest for a name that is none.
    """

    def __init__(self, objects: Objects, work: Work, check: Callable[[bool], Awaitable[None]]) -> None:
        self._objects = objects
        self._work = work
        self._check = check

    async def create(self, name: str, text: bytes) -> bool:
        """Writes a document; False if another one of that name is there. Of two writers one wins."""
        await self._check(True)
        place, content = layout.document_object(name), MemoryContent(text)

        def write(task: Task) -> bool:
            if task.retry(lambda: self._objects.put(place, content, 0, lambda _: None, task.stop)) is not None:
                return True
            try:  # an attempt of ours whose answer was lost, or somebody else's
                return read_whole(self._objects, place, _LONGEST, task) == text
            except (NotFound, Damaged):
                return False

        return await self._work.run(write)

    async def read(self, name: str) -> bytes:
        """Raises NotFound."""
        await self._check(False)
        place = layout.document_object(name)
        return await self._work.run(lambda task: read_whole(self._objects, place, _LONGEST, task))

    async def renew(self, name: str) -> None:
        """Says of a document that somebody relies on it. Raises NotFound."""
        await self._check(False)
        place = layout.document_object(name)

        def mark(task: Task) -> bool:
            return mark_used(self._objects, list(heads(self._objects, [place], task).values()), task) == [True]

        if not await self._work.run(mark):
            raise NotFound(f"{place} is not there")

    async def listed(self, folder: str = "") -> tuple[Document, ...]:
        """All whose names begin so, in order of their names."""
        await self._check(False)

        def look(task: Task) -> tuple[Document, ...]:
            return tuple(
                Document(stored.name.removeprefix(layout.DOCUMENTS), stored.size, stored.created, stored.generation)
                for stored in list_all(self._objects, layout.DOCUMENTS + folder, task)
            )

        return await self._work.run(look)

    async def remove(self, names: Collection[str]) -> Removal:
        """Removes documents; those that are not there are no error."""
        return await self._remove([Removable(layout.document_object(name)) for name in names])

    async def remove_listed(self, document: Document) -> Removal:
        """Removes a document unless somebody has written another one of that name since it was listed."""
        name = layout.document_object(document.name)
        return await self._remove([Removable(name, document.size, document.generation)])

    async def _remove(self, wanted: Sequence[Removable]) -> Removal:
        await self._check(False)
        return await self._work.run(lambda task: remove(self._objects, wanted, task))
