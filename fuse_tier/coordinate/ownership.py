"""Which node owns which volume, and under which epoch (``epochs.py``).

Pure: who is alive and what time it is comes in. It begins with nothing and learns from reports: what a node says it
has mounted, under which epoch, and which snapshots are listed anywhere. Two rules keep an old owner from passing for
the newest:

* Nobody goes on under an epoch below that of a snapshot that is listed somewhere: another node has owned the volume
  since, and has saved.
* An ownership that was granted before this coordinator began gets a new epoch as soon as all have had the time to
  report. Who has the highest epoch by then has it; who comes later with one of before comes too late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from fuse_tier.epochs import EpochClock, epoch_of
from fuse_tier.errors import IdentityBusy, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import Holdings

_REMEMBERED = 8  # epochs of a volume


@dataclass(frozen=True, slots=True)
class Ownership:
    """A volume's node, since when that is known, and its epoch."""

    node: str
    since: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """An identity that a node says it has mounted, while it belongs to another one that is alive."""

    identity: Identity
    holder: str
    other: str


class Ownerships:
    """All that are known.

    ``is_alive`` tells whether a node holds a lease; ``settled_at`` is when all that do must have reported. Epochs run
    ahead of the time by ``lead_seconds`` at most, so that a coordinator that starts again is above them.
    """

    def __init__(
        self, clock: EpochClock, settled_at: float, lead_seconds: float, is_alive: Callable[[str], bool]
    ) -> None:
        self._clock = clock
        self.settled_at = settled_at
        self._lead = int(lead_seconds)
        self._is_alive = is_alive
        self._owned: dict[Identity, Ownership] = {}
        self._by_node: dict[str, set[Identity]] = {}
        self._past: dict[Identity, dict[int, str]] = {}  # who has owned it under which of its last epochs
        self._granted: dict[Identity, int] = {}  # the highest that this coordinator granted, or accepted
        self._listed: dict[Identity, int] = {}  # the highest of a snapshot that anybody listed
        self._begun = 0  # the epoch at which all had reported; what is below was granted before; 0: not yet

    def settle_at(self, moment: float) -> None:
        """Not all that hold a lease need have reported before this moment."""
        self.settled_at = max(self.settled_at, moment)

    def of(self, identity: Identity) -> Ownership | None:
        """A volume's owner, if it is alive."""
        found = self._owned.get(identity)
        return found if found is not None and self._is_alive(found.node) else None

    def past(self, identity: Identity) -> Mapping[int, str]:
        """The nodes that own a volume, or did, gone or not, by the last epochs that are known."""
        return self._past.get(identity, {})

    def by(self, node: str, now: float) -> dict[Identity, int]:
        """What a node owns for certain, with the epochs: nothing that it had before, until all have reported."""
        owned = {identity: self._owned[identity].epoch for identity in self._by_node.get(node, ())}
        return {identity: epoch for identity, epoch in owned.items() if not self._is_from_before(epoch, now)}

    def identities(self) -> set[Identity]:
        """All that have an owner."""
        return set(self._owned)

    def hear(self, epoch: int, holdings: Iterable[Holdings], now: float) -> None:
        """What a node knows: the highest epoch it has heard of, and which snapshots are where."""
        for held in holdings:
            for identity, numbers in held.items():
                listed = epoch_of(numbers[-1]) if numbers else 0
                if listed > self._listed.get(identity, 0):
                    self._listed[identity] = listed
                    epoch = max(epoch, listed)
        self._clock.hear(epoch, now)

    def take(self, node: str, mounted: Mapping[Identity, int], now: float) -> frozenset[Conflict]:
        """A node says what it has mounted, and under which epochs: whatever else was its own is no more."""
        for identity in self._by_node.get(node, set()) - mounted.keys():
            self._drop(identity)
        return frozenset(
            conflict for identity in mounted if (conflict := self._take(identity, node, mounted[identity], now))
        )

    def _take(self, identity: Identity, node: str, epoch: int, now: float) -> Conflict | None:
        self._clock.hear(epoch, now)
        owned, conflict = self.of(identity), None
        if owned is not None and owned.node != node:
            if epoch <= owned.epoch or not self._is_from_before(owned.epoch, now):
                if epoch >= owned.epoch:
                    self._keep(identity, replace(owned, epoch=self._next(identity, epoch, now)))
                return Conflict(identity, owned.node, node)
            conflict = Conflict(identity, node, owned.node)
            owned = None
        if owned is None:
            if epoch < max(self._listed.get(identity, 0), self._granted.get(identity, 0)):
                return None  # another has owned it since: it has to ask
            owned = Ownership(node, now, epoch)
        self._keep(identity, replace(owned, epoch=max(epoch, owned.epoch)))
        self._renew(identity, now)
        return conflict

    def _renew(self, identity: Identity, now: float) -> None:
        """Gives an ownership from before a new epoch, once it is clear that nobody has a higher one."""
        owned = self._owned[identity]
        if self._has_settled(now) and self._is_from_before(owned.epoch, now):
            if self._listed.get(identity, 0) > owned.epoch:
                self._drop(identity)
            else:
                self._keep(identity, replace(owned, epoch=self._next(identity, owned.epoch, now)))

    def grant(self, identity: Identity, node: str, goes_on: int | None, above: int, now: float) -> int:
        """The epoch under which a volume is a node's from now on; the same as before if it was.

        ``goes_on`` is the epoch under which the node has it mounted already, None if it has not. ``above`` is one
        that has to be exceeded. Raises IdentityBusy when somebody has owned it since and has saved, TierUnavailable
        when nobody can tell yet. The caller has seen that no other node owns it.
        """
        if self.of(identity) is not None:
            self._renew(identity, now)
        owned = self.of(identity)
        if owned is not None and owned.epoch > above and not self._is_from_before(owned.epoch, now):
            return owned.epoch
        if not self._has_settled(now):
            raise TierUnavailable(
                f"the coordinator has just started and hears first who has {identity} mounted: "
                f"try again in {self.settled_at - now:.1f} s"
            )
        listed = self._listed.get(identity, 0)
        if owned is None and goes_on is not None and listed > goes_on:
            raise IdentityBusy(
                f"{identity} was another node's since, and snapshots were taken there: unmount it here; a new mount "
                "continues with the files of there"
            )
        epoch = self._next(identity, max(above, goes_on or 0), now)
        if epoch == self._granted.get(identity, 0) + 1 and epoch > self._clock.read(now) + self._lead:
            raise TierUnavailable(f"{identity} has changed hands too often within a moment: try again in a second")
        self._keep(identity, Ownership(node, owned.since if owned else now, epoch))
        return epoch

    def release(self, identity: Identity, node: str) -> None:
        """A node gives a volume back, if it has it."""
        owned = self._owned.get(identity)
        if owned is not None and owned.node == node:
            self._drop(identity)

    def forget_gone(self) -> None:
        """Drops what belongs to nodes that are gone."""
        for identity, owned in list(self._owned.items()):
            if not self._is_alive(owned.node):
                self._drop(identity)

    def forget_all_but(self, known: Iterable[Identity]) -> None:
        """Volumes of which no node that is known has anything are no more."""
        kept = {*known, *self._owned}
        for identity in self._past.keys() - kept:
            del self._past[identity]
        for epochs in (self._granted, self._listed):
            for identity in epochs.keys() - kept:
                del epochs[identity]

    def _drop(self, identity: Identity) -> None:
        self._by_node[self._owned.pop(identity).node].discard(identity)

    def _keep(self, identity: Identity, owned: Ownership) -> None:
        if identity in self._owned:
            self._drop(identity)
        self._owned[identity] = owned
        past = self._past.setdefault(identity, {})
        past[owned.epoch] = owned.node
        if len(past) > _REMEMBERED:
            del past[min(past)]
        self._by_node.setdefault(owned.node, set()).add(identity)
        self._granted[identity] = max(owned.epoch, self._granted.get(identity, 0))

    def _next(self, identity: Identity, above: int, now: float) -> int:
        known = max(above, self._listed.get(identity, 0))
        self._clock.hear(known, now)
        return max(self._clock.read(now), known + 1, self._granted.get(identity, 0) + 1)

    def _has_settled(self, now: float) -> bool:
        if now >= self.settled_at and not self._begun:
            self._begun = self._clock.read(now)
        return now >= self.settled_at

    def _is_from_before(self, epoch: int, now: float) -> bool:
        return not self._has_settled(now) or epoch < self._begun
