"""Keeps spares for the next checkpoints, once the node is at rest (ram/spares.py): of each volume that is mounted
here, and then of those whose copies come here (expecting.py).

What the next checkpoint needs is what the newest one has: of the large files whose paths differ in nothing but
numbers, those with the highest step, the number that stands farthest to the left. A spare is a convenience. So there
are none in a small tier, and none that would leave less than half of one free; they go as soon as more is taken than
that, before the worker gives up anything else, and with the node.

What is left of that room is kept in pieces where the configuration has memory made ready (``ram.warm``), while no job
has a volume here: nobody knows beforehand what a restore will bring. Only of memory that nobody else uses, not even
as a cache, and they are given back when that runs short: what is used the host has backed, and leaves where it is.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final

import structlog
import trio

from fuse_tier.entries import Entry
from fuse_tier.identity import SnapshotId
from fuse_tier.ram.cgroups import memory_left
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import room_of
from fuse_tier.ram.spares import LEAST_BYTES, PIECE_BYTES, Spares, Unfinished
from fuse_tier.ram.warm import spare_memory
from fuse_tier.replicate.volume import Volume

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS: Final = 1.0
# While there are some: a writer nobody knew of takes what is left of the room in no less, as fast as RAM is.
_WATCH_EVERY_SECONDS: Final = 0.05
_SMALLEST_TIER_BYTES: Final = 4 << 30
_MOST: Final = 64
_MOST_PIECES: Final = 512
_AT_ONCE_BYTES: Final = 32 << 20
_OWN_BYTES: Final = 256 << 20  # of our memory limit, left for all else that we do
_NUMBER: Final = re.compile(rb"[0-9]+")


def next_sizes(entries: Iterable[Entry]) -> list[int]:
    """The sizes of the large files that a next checkpoint probably makes, from those of the tree as it is."""
    newest: dict[bytes, tuple[int, list[int]]] = {}
    for entry in entries:
        if entry.blob is None or entry.blob.size < LEAST_BYTES or (step := _NUMBER.search(entry.path)) is None:
            continue
        pattern, number, size = _NUMBER.sub(b"#", entry.path), int(step.group()), entry.blob.size
        known = newest.get(pattern)
        if known is None or number > known[0]:
            newest[pattern] = (number, [size])
        elif number == known[0]:
            known[1].append(size)
    return sorted((size for _, sizes in newest.values() for size in sizes), reverse=True)


async def nothing() -> list[int]:
    """No copies of others come here."""
    await trio.lowlevel.checkpoint()
    return []


class Sparing:
    """Of one node. ``is_at_rest`` says whether there is time, ``expected`` what sizes peers will send."""

    def __init__(
        self,
        layout: Layout,
        volumes: Iterable[Volume],
        is_at_rest: Callable[[], bool],
        smallest_tier_bytes: int = _SMALLEST_TIER_BYTES,
        expected: Callable[[], Awaitable[list[int]]] = nothing,
        *,
        keeps_pieces: bool = False,
    ) -> None:
        self._layout = layout
        self._keeps_pieces = keeps_pieces
        self._spares = Spares(layout)
        self._volumes = volumes
        self._is_at_rest = is_at_rest
        self._smallest = smallest_tier_bytes
        self._expected = expected
        self._coming: list[int] = []
        self._thread = trio.CapacityLimiter(1)
        self._known: dict[SnapshotId, list[int]] = {}

    async def run(self) -> None:
        """Runs until cancelled; then there are none."""
        self._spares.give_up()
        try:
            if room_of(self._layout.root).capacity >= self._smallest:
                while True:
                    await self._watch(_LOOK_EVERY_SECONDS)
                    if self._is_at_rest():
                        await self._adapt()
        finally:
            self._spares.give_up()

    @property
    def waiting_bytes(self) -> int:
        """What is still to be made ready, as far as there is room for it."""
        capacity = room_of(self._layout.root).capacity
        if capacity < self._smallest:
            return 0
        wanted, pieces = self._wanted()
        missing = Counter(wanted) - Counter(self._spares.sizes_made_for())
        return sum(missing.elements()) + PIECE_BYTES * max(0, pieces - self._spares.pieces())

    async def _watch(self, seconds: float) -> None:
        deadline = trio.current_time() + seconds
        while trio.current_time() < deadline:
            if not self._spares.sizes():
                return await trio.sleep_until(deadline)
            if self._room_for_spares() < 0:
                self._spares.give_up()
            elif self._spares.pieces() and (lacking := -spare_memory()) > 0:
                self._spares.drop_pieces(-(-lacking // PIECE_BYTES))
            await trio.sleep(_WATCH_EVERY_SECONDS)
        return None

    def _room_for_spares(self) -> int:
        room = room_of(self._layout.root)
        return room.capacity // 2 - room.used

    def _wanted(self) -> tuple[list[int], int]:
        """What there is room for: first our jobs', who wait for them, of each the largest first; and pieces."""
        mounted = [volume for volume in self._volumes if volume.mountpoint is not None]
        newest = [volume.newest for volume in mounted if volume.newest is not None]
        self._known = {
            one.id: self._known[one.id] if one.id in self._known else next_sizes(one.entries) for one in newest
        }
        own = memory_left()
        room = self._room_for_spares() if own is None else min(self._room_for_spares(), own - _OWN_BYTES)
        left = room + sum(self._spares.sizes())
        wanted: list[int] = []
        own_sizes = sorted((size for sizes in self._known.values() for size in sizes), reverse=True)
        for size in (*own_sizes, *sorted(self._coming, reverse=True)):
            if size <= left and len(wanted) < _MOST:
                wanted.append(size)
                left -= size
        if not self._keeps_pieces or mounted:
            return wanted, 0
        left = min(left, spare_memory() + self._spares.pieces() * PIECE_BYTES)
        # One less than there is room for: a little that is written beside them would cost all.
        return wanted, min(_MOST_PIECES, max(0, left // PIECE_BYTES - 1))

    async def _adapt(self) -> None:
        self._coming = await self._expected()
        sizes, pieces = self._wanted()
        wanted, there = Counter(sizes), Counter(self._spares.sizes_made_for())
        for size in (there - wanted).elements():
            self._spares.drop(size)
        if (many := self._spares.pieces() - pieces) > 0:
            self._spares.drop_pieces(many)
        try:
            for size in sorted((wanted - there).elements(), reverse=True):
                if not await self._make(self._spares.begin(size), size):
                    return
            for _ in range(pieces - self._spares.pieces()):
                if spare_memory() < PIECE_BYTES or not await self._make(self._spares.begin_piece(), PIECE_BYTES):
                    return
        except OSError as error:
            log.info("spare.not_made", reason=str(error))

    async def _make(self, beginning: AbstractContextManager[Unfinished], size: int) -> bool:
        """At most for half of the time; says whether nothing came in between."""
        with beginning as spare:
            for offset in range(0, size, _AT_ONCE_BYTES):
                begun = time.monotonic()
                part = min(_AT_ONCE_BYTES, size - offset)
                if not await trio.to_thread.run_sync(spare.fill, offset, part, limiter=self._thread):
                    return False
                await trio.sleep(time.monotonic() - begun)
                if not self._is_at_rest() or self._room_for_spares() < 0:
                    return False
            return spare.finish()
