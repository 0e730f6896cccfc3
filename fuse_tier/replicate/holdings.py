"""What this node's RAM tier lists, as others are told of it: kept up to date, and told when it changes."""

from __future__ import annotations

from collections.abc import Callable

from fuse_tier.checkpoints import Saved
from fuse_tier.identity import Identity
from fuse_tier.replicate.knowledge import Knowledge
from fuse_tier.tiers.ram import RamTier


class OwnHoldings:
    """Of one RAM tier; ``refresh`` reads it. ``changed`` is called when something else is listed than before."""

    def __init__(self, ram: RamTier, knowledge: Knowledge, changed: Callable[[], None]) -> None:
        self._ram = ram
        self._knowledge = knowledge
        self._changed = changed
        self.numbers: dict[Identity, tuple[int, ...]] = {}  # of all that is listed, ascending
        self.saved: dict[Identity, tuple[Saved, ...]] = {}  # of jobs of several ranks, what that is part of

    async def refresh(self) -> None:
        """Looks again."""
        found: dict[Identity, list[int]] = {}
        listed = await self._ram.snapshots()
        saved = await self._knowledge.of_jobs(listed)
        for snapshot in listed:
            found.setdefault(snapshot.identity, []).append(snapshot.number)
        numbers = {identity: tuple(ascending) for identity, ascending in found.items()}
        if (numbers, saved) != (self.numbers, self.saved):
            self.numbers, self.saved = numbers, saved
            self._changed()
