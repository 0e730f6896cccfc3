"""Stand-in until the real one is merged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from fuse_tier.errors import Damaged, NotFound
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_transfer import read_whole


@dataclass(frozen=True, slots=True)
class Document:
    """A document as a listing tells of it."""

    name: str
    size: int
    created: float


class Documents:
    """Documents."""

    def __init__(self, objects: Any, work: Any, check: Callable[[bool], Awaitable[None]]) -> None:
        self._objects = objects
        self._work = work
        self._check = check

    async def create(self, name: str, text: bytes) -> bool:
        """Create."""
        await self._check(True)
        place, content = f"checkpoints/{name}", MemoryContent(text)

        def write(task: Any) -> bool:
            if task.retry(lambda: self._objects.put(place, content, 0, lambda _: None, task.stop)) is not None:
                return True
            try:
                return read_whole(self._objects, place, 1 << 30, task) == text
            except (NotFound, Damaged):
                return False

        return bool(await self._work.run(write))

    async def read(self, name: str) -> bytes:
        """Read."""
        await self._check(False)
        return bytes(
            await self._work.run(lambda task: read_whole(self._objects, f"checkpoints/{name}", 1 << 30, task))
        )

    async def listed(self, folder: str = "") -> tuple[Document, ...]:
        """List."""
        await self._check(False)
        found = await self._work.run(
            lambda task: task.retry(
                lambda: [
                    Document(stored.name.removeprefix("checkpoints/"), stored.size, stored.created)
                    for stored in self._objects.listed("checkpoints/" + folder, task.stop)
                ]
            )
        )
        return tuple(found)

    async def remove(self, names: Collection[str]) -> None:
        """Remove."""
        for name in names:

            def go(name: str = name) -> None:
                stored = self._objects.head(f"checkpoints/{name}")
                if stored is not None:
                    self._objects.delete(stored)

            await self._work.run(lambda task: task.retry(go))
