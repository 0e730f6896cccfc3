"""Reading a volume's whole tree as it stood at one instant, while its job goes on.

The tree is walked in a thread. The mount daemon counts changes; if the count is the same before and after the walk,
what was read stood there at one instant. If the job never pauses that long, the daemon is asked to hold changes back
for the time of one walk, which is bounded (holding.py). So a tree that can be read in that time is read, however busy
its job is.

A walk waits for nobody's hashing: each volume has a thread for its own. What a job is held for is the walk alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.manifest import Entry
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.ram.pins import Pins
from fuse_tier.replicate.holding import Holding
from fuse_tier.replicate.walk import TreeChanged, Walk, Writers, walk_tree

T = TypeVar("T")

_OPTIMISTIC_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class TreeVersion:
    """What the mount daemon says of its tree at one instant."""

    counter: int
    writers: Writers


class Gate(Protocol):
    """The one who can say whether the tree has changed, and can keep it from changing."""

    async def version(self) -> TreeVersion:
        """The state of now."""
        ...

    async def hold(self, seconds: float) -> TreeVersion:
        """Keeps the tree as it is until ``release``, or until the seconds have passed."""
        ...

    async def release(self) -> None:
        """Lets changes go on."""
        ...


class Quiescent:
    """The gate of a tree that is not mounted."""

    async def version(self) -> TreeVersion:
        """Nobody writes."""
        await trio.lowlevel.checkpoint()
        return TreeVersion(0, Writers())

    async def hold(self, seconds: float) -> TreeVersion:
        """Nothing to hold."""
        return await self.version()

    async def release(self) -> None:
        """Nothing was held."""
        await trio.lowlevel.checkpoint()


class TreeReader:
    """Reads the tree of one volume, once at a time (the caller sees to that).

    ``evicting`` is held by who takes content out of files of the tree. A walk that saw a file's marker missing, and
    then the file empty, would believe that this is its content.
    """

    def __init__(self, volume: VolumeLayout, pins: Pins, evicting: trio.Lock) -> None:
        self._volume = volume
        self._pins = pins
        self._thread = trio.CapacityLimiter(1)
        self._evicting = evicting
        self._holding = Holding()
        self.held_seconds = 0.0
        """For how long changes were kept back for the last reading, or the last attempt at one."""

    async def read(self, gate: Gate, previous: Mapping[bytes, Entry], *, is_awaited: bool = False) -> Walk:
        """The tree as it stands now. Raises TreeChanged when it changed under every attempt."""
        self.held_seconds = reading = 0.0
        for _ in range(_OPTIMISTIC_ATTEMPTS):
            before = await gate.version()
            async with self._evicting:
                walk, seconds = await self._walk(before.writers, previous)
            reading = max(reading, seconds)
            if walk is not None:
                after = await gate.version()
                if after.counter == before.counter:
                    return walk
                await self._take_back(walk, after.writers)
        async with self._evicting:  # before the job is held, which is not to wait for that
            return await self._read_held(gate, previous, reading, is_awaited=is_awaited)

    async def _read_held(
        self, gate: Gate, previous: Mapping[bytes, Entry], reading: float, *, is_awaited: bool
    ) -> Walk:
        holding, now = self._holding, trio.current_time()
        patience = holding.next(now, reading, is_awaited=is_awaited)
        if not patience:
            raise TreeChanged(
                f"the tree of {self._volume.root}, which takes {reading:.1f} s to read, changed meanwhile; its job "
                f"was held back in vain, and is not held back again for another {holding.not_for(now):.0f} s"
            )
        before, began = await gate.hold(patience), trio.current_time()
        try:
            walk, _ = await self._walk(before.writers, previous)
            after = await gate.version()
        finally:
            with trio.move_on_after(Deadline.HOLD) as scope:
                scope.shield = True
                await gate.release()
            self.held_seconds = min(patience, trio.current_time() - began)
        if walk is not None and after.counter == before.counter:
            holding.was_of_use(self.held_seconds)
            return walk
        if walk is not None:
            await self._take_back(walk, after.writers)
        holding.was_in_vain(trio.current_time(), self.held_seconds)
        raise TreeChanged(
            f"the tree of {self._volume.root} could not be read within the {patience:.1f} s for which its job was "
            f"held back, and is not held back again for {holding.not_for(trio.current_time()):.0f} s"
        )

    async def _walk(self, writers: Writers, previous: Mapping[bytes, Entry]) -> tuple[Walk | None, float]:
        """What stands there, None if it changed meanwhile; and how many seconds the reading itself took."""

        def walk() -> tuple[Walk | None, float]:
            began = time.monotonic()
            try:
                found = walk_tree(self._volume, self._pins, writers, previous)
            except TreeChanged:
                return None, time.monotonic() - began
            return found, time.monotonic() - began

        return await self._in_thread(walk)

    async def _take_back(self, walk: Walk, writers: Writers) -> None:
        """Removes pins that a writer may have overtaken."""
        late = [found.inode for found in walk.unhashed if found.inode in writers.inodes]
        if late:
            await self._in_thread(lambda: self._unpin(late))

    def _unpin(self, inodes: Sequence[int]) -> None:
        for inode in inodes:
            self._pins.unpin(inode)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._thread)
