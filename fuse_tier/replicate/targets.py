"""Where the copies of this node's volumes belong at the moment: the placement, asked no more often than it pays.

Deciding for all volumes of a large cluster takes a good part of a second; while jobs start, the members change many
times a second. So a decision stays until something has changed and ten times the time that it took has passed: what
it would have said in between would have moved on anyway.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import trio

from fuse_tier.identity import Identity
from fuse_tier.members import Member
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.placement import choose_all, choose_holders, volumes_of

_REST = 10.0  # times what a decision took
_AT_ONCE = 64  # members: a decision about fewer is made without a thread


class Targets:
    """The holders of this node's volumes, and of those that it looks after."""

    def __init__(self, membership: Membership, copies: int) -> None:
        self._membership = membership
        self._copies = copies
        self._deciding = trio.Lock()
        self._version = -1
        self._due = -math.inf
        self._owners: dict[Identity, Member] = {}
        self._chosen: dict[Identity, tuple[str, ...]] = {}

    async def of(self, identity: Identity, owner: Member, refusing: Collection[str] = ()) -> tuple[str, ...]:
        """The nodes that shall hold copies of a volume that lives on ``owner``, best first.

        Others take the places of those that are ``refusing`` just now.
        """
        async with self._deciding:
            version = self._membership.version
            known = self._owners.get(identity)
            if known is None or known.node != owner.node or (version != self._version and self._is_due()):
                await self._decide(version, identity, owner)
            chosen = self._chosen[identity]
        members = {member.node: member for member in self._membership.members()}
        kept = [members[node] for node in chosen if node not in refusing and node in members and members[node].alive]
        able = [member for member in members.values() if member.node not in refusing and member not in kept]
        others = choose_holders(identity, owner, able, self._copies - len(kept), beside=kept)
        return (*(member.node for member in kept), *others)

    @property
    def due(self) -> float:
        """When, by trio's clock, something else may be decided because something has changed already; infinity: not.

        It may have passed: then whoever asks next has it decided.
        """
        return math.inf if self._version == self._membership.version else self._due

    def _is_due(self) -> bool:
        return trio.current_time() >= self._due

    async def _decide(self, version: int, identity: Identity, owner: Member) -> None:
        # Our own node is a place for others' copies like any other: without it all others' shares would be larger.
        members = [*self._membership.members(), self._membership.own()]
        own = self._membership.own().node
        # Volumes of ours that are not mounted: nobody else tells us of them.
        others = {known: member for known, member in self._owners.items() if member.node == own}
        owners = {**others, **volumes_of(members), identity: owner}
        begun = trio.current_time()
        if len(members) > _AT_ONCE:
            self._chosen = await trio.to_thread.run_sync(choose_all, owners, members, self._copies)
        else:
            self._chosen = choose_all(owners, members, self._copies)
        self._owners = owners
        self._version = version
        self._due = trio.current_time() + _REST * (trio.current_time() - begun)
