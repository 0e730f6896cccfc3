"""Brings large files of a node's volumes into huge pages once the node is at rest.

Who restarts from a file reads it through a mapping, most often, and content that was written under a name without a
predecessor has small pages (docs/memory.md). What trainers feel is interference: so nothing is done while anything is
to be sealed or being copied, and never for more than half of the time. Not an error ever: pages are as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.identity import SnapshotId
from fuse_tier.ram.cgroups import memory_left
from fuse_tier.ram.hugepages import bring_together, huge_page_bytes
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import huge_page_mode
from fuse_tier.replicate.volume import Volume

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS: Final = 1.0
_AT_ONCE_BYTES: Final = 32 << 20  # 16 ms
_SPARED_BYTES: Final = 256 << 20  # of our own memory limit, for all else that we do


class Resting:
    """Of one node. ``is_busy`` says whether copies are being made, ``bring`` does it (ram/hugepages.py)."""

    def __init__(
        self,
        layout: Layout,
        volumes: Iterable[Volume],
        is_busy: Callable[[], bool],
        huge_bytes: int,
        bring: Callable[[str, int, int], bool] = bring_together,
    ) -> None:
        self._layout = layout
        self._volumes = volumes
        self._is_busy = is_busy
        self._thread = trio.CapacityLimiter(1)
        self._huge = huge_bytes
        self._bring = bring
        self._works = False
        self._done: set[Blob] = set()
        self._gone_through: set[SnapshotId] = set()

    async def run(self) -> None:
        """Runs until cancelled, or until the kernel says that it has no such thing."""
        rested = False
        while self._huge:
            await trio.sleep(_LOOK_EVERY_SECONDS)
            before, rested = rested, self.is_at_rest()
            newest = {volume.newest.id for volume in self._volumes if volume.newest is not None}
            if before and rested and newest - self._gone_through and await self._go_through():
                self._gone_through = newest

    @property
    def waiting_bytes(self) -> int:
        """How much was not looked at yet."""
        return sum(blob.size for blob in self._waiting())

    def _waiting(self) -> list[Blob]:
        if not self._huge:
            return []
        large = {
            entry.blob
            for volume in self._volumes
            if volume.newest is not None
            for entry in volume.newest.entries
            if entry.blob is not None and entry.blob.size >= self._huge
        }
        self._done &= large
        return sorted(large - self._done)

    def is_at_rest(self) -> bool:
        """Whether nothing is to be sealed, copied or restored, and our own memory limit leaves some room."""
        is_active = any(volume.is_dirty or volume.coming is not None for volume in self._volumes)
        return not self._is_busy() and not is_active and _may_take_memory()

    async def _go_through(self) -> bool:
        """Says whether nothing came in between."""
        for blob in self._waiting():
            for offset in range(0, blob.size - self._huge + 1, _AT_ONCE_BYTES):
                begun = time.monotonic()
                known = await trio.to_thread.run_sync(
                    self._bring, self._layout.blob(blob), offset, _AT_ONCE_BYTES, limiter=self._thread
                )
                self._works |= known
                if not self._works:
                    log.info("pages.left", reason="this kernel brings none together (Linux 6.1 does)")
                    self._huge = 0
                    return True
                await trio.sleep(time.monotonic() - begun)
                if not self.is_at_rest():
                    return False
            self._done.add(blob)
        return True


def huge_bytes_of(layout: Layout) -> int:
    """The size of the huge pages that files of a RAM tier may have; 0 where they have none."""
    return huge_page_bytes() if huge_page_mode(layout.root) != "never" else 0


def _may_take_memory() -> bool:
    left = memory_left()
    return left is None or left >= _SPARED_BYTES + _AT_ONCE_BYTES
