"""What a coordinator knows: who is alive, who holds what, and which node has which identity mounted.

Pure and synchronous: time comes in as monotonic seconds, nothing is sent, nothing is stored. It keeps no
truth of its own: everything is rebuilt from the nodes' reports, each of which is whole. The invariant: an
identity is granted to no node while another that may have it mounted holds a lease.

A node's claims are what its newest report calls mounted, and what it was granted since. Who holds a lease is known in
``nodes.py``; whose claim counts, and under which epoch, is decided in ``ownership.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from fuse_tier.coordinate.listings import Listings
from fuse_tier.coordinate.nodes import Change, Nodes
from fuse_tier.coordinate.ownership import Conflict, Ownership, Ownerships
from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import EpochClock
from fuse_tier.errors import IdentityBusy
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Holdings, Location, Member, Picture, Report, VolumePicture


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of a report; ``conflicts`` are those not told before."""

    change: Change
    conflicts: tuple[Conflict, ...]


class Directory:
    """One cluster's picture. ``now`` is monotonic seconds, never less than in the call before.

    ``epoch`` is what the clock says at the start, for the epochs of ownerships. ``expire`` is to be called several
    times in a lease: time in which nobody called anything is time in which reports may have been waiting unread, and
    counts against no node.
    """

    def __init__(
        self, lease_seconds: float, now: float, epoch: int = 1, domain_of: Callable[[str], Domain] | None = None
    ) -> None:
        """``domain_of`` is what others than a node itself say of what it fails together with; it counts first."""
        self.life = secrets.token_hex(8)
        self.nodes = Nodes(lease_seconds, now, domain_of)
        self._clock = EpochClock(epoch, now)
        self._began = now
        self._owned = Ownerships(self._clock, now + lease_seconds, max(1.0, lease_seconds / 2), self.nodes.lives)
        self._conflicts: set[Conflict] = set()
        self._listings = Listings()
        self._copied: dict[Identity, int] = {}  # the newest that a node had which had not mounted the volume

    def report(self, report: Report, now: float) -> Accepted:
        """Takes a node's report in and renews its lease.

        Raises TierRefused when the name belongs to another node that is alive, or the report was overtaken.
        """
        change = self.nodes.hear(report, now)
        if not self.is_settled(now):  # the lease that it had from the coordinator before may be a longer one
            self._owned.settle_at(self._began + min(report.lease_seconds, Deadline.LEASE))
        listed: tuple[Holdings, ...] = ()
        if self._listings.hear(report.node, report.facts):
            listed = (report.facts.holdings, report.facts.bucket)
            for identity, numbers in report.facts.holdings.items():
                if numbers and identity not in report.facts.mounted:
                    self._copied[identity] = max(numbers[-1], self._copied.get(identity, 0))
        self._owned.hear(report.clock, listed, now)
        return Accepted(change, self._take_claims(report, now))

    def claim(
        self,
        identity: Identity,
        node: str,
        instance: str,
        sequence: int,
        now: float,
        *,
        goes_on: int | None = None,
        above: int = 0,
    ) -> int:
        """Grants an identity to a node, until it releases it, reports without it, or loses its lease.

        Gives the epoch of that, see ``Ownerships.grant``. Raises IdentityBusy when another node that is alive has it,
        or has had it and saved since, TierUnavailable when nobody can tell yet, TierRefused for a caller that is not
        who it was.

        Nobody can tell in the first lease after a start: a node that has the identity mounted may not have
        reported yet. One that is alive and reaches us reports several times in a lease; one that doesn't
        would have lost its lease with a coordinator that never went away. So one lease is enough, and nothing
        less is without knowing who should report. What a node itself reports as mounted needs no such wait.
        """
        self.nodes.observe(now)
        caller = self.nodes.caller(node, instance, sequence, now)
        owned = self._owner_of(identity, now)
        if owned is not None and owned.node != node:
            holder = self.nodes.of(owned.node).report
            user = holder.facts.users.get(identity, "")
            for_user = f" for {user}" if user else ""
            raise IdentityBusy(
                f"{identity} is mounted on node {owned.node} ({holder.control}){for_user}, seen there "
                f"for {now - owned.since:.0f} s: unmount it there, or stop that node, or mount another identity"
            )
        epoch = self._owned.grant(identity, node, goes_on, above, now)
        caller.sequence = sequence
        return epoch

    def granted(self, node: str, now: float) -> dict[Identity, int]:
        """What belongs to a node that has just reported, with the epochs."""
        return self._owned.by(node, now)

    def is_settled(self, now: float) -> bool:
        """Whether all that are alive must have reported."""
        return now >= self._owned.settled_at

    def clock(self, now: float) -> int:
        """The epoch of this moment."""
        return self._clock.read(now)

    def release(self, identity: Identity, node: str, instance: str, sequence: int, now: float) -> None:
        """Gives an identity back. One that the node doesn't have is no error. Raises as ``claim`` does."""
        self.nodes.observe(now)
        caller = self.nodes.caller(node, instance, sequence, now)
        caller.sequence = sequence
        facts = caller.report.facts  # else what it has would be passed over for whoever claims next: see locate
        caller.report = replace(caller.report, facts=replace(facts, mounted=facts.mounted - {identity}))
        self._owned.release(identity, node)

    def owner(self, identity: Identity, now: float) -> Ownership | None:
        """The live node that has the identity, and under which epoch."""
        return self._owner_of(identity, now)

    def holder(self, identity: Identity, now: float) -> tuple[Member, float] | None:
        """The live node that has the identity, and for how many seconds its lease still runs."""
        owned = self._owner_of(identity, now)
        if owned is None:
            return None
        known = self.nodes.of(owned.node)
        return self.nodes.shown(known, now), known.expires - now

    def locate(self, identity: Identity, now: float) -> Location:
        """Who lists which snapshots of a volume.

        A node that has it mounted though it is another node's goes on with files that are not the volume's. What it
        has counts as far as it was copied before, for then it was acknowledged, and may be nowhere else by now; and
        all of it, where nobody else has anything: else the volume would begin empty.
        """
        owned, copied = self._owner_of(identity, now), self._copied.get(identity, 0)
        holders: list[tuple[Member, tuple[int, ...]]] = []
        left: list[tuple[Member, tuple[int, ...]]] = []  # of those that had it before
        bucket: set[int] = set()
        for node in self._listings.nodes(identity):
            known = self.nodes.of(node)
            bucket.update(known.report.facts.bucket.get(identity, ()))
            is_left = identity in known.report.facts.mounted and owned is not None and owned.node != known.report.node
            if numbers := known.report.facts.holdings.get(identity):
                (left if is_left else holders).append((self.nodes.shown(known, now), numbers))
        if holders or bucket:
            left = [(member, tuple(number for number in numbers if number <= copied)) for member, numbers in left]
        holders += [(member, numbers) for member, numbers in left if numbers]
        holders.sort(key=lambda holder: (not holder[0].alive, -holder[1][-1], holder[0].node))
        owners = self._remembered(identity)
        return Location(tuple(holders), tuple(sorted(bucket)), copied, self.is_settled(now), owners=owners)

    def _remembered(self, identity: Identity) -> dict[int, str]:
        """Who had a volume under its last epochs: those since the last one whose node is forgotten.

        Else that one would lie between others that are known, and pass for one that was nobody's.
        """
        past = self._owned.past(identity)
        forgotten = max((epoch for epoch, node in past.items() if node not in self.nodes.names()), default=-1)
        return {epoch: node for epoch, node in past.items() if epoch > forgotten}

    def picture(self, now: float) -> Picture:
        """Everything, for people."""
        volumes = []
        for identity in sorted(self._owned.identities() | set(self._listings.identities())):
            owned = self._owner_of(identity, now)
            volumes.append(VolumePicture(identity, owned.node if owned else "", self.locate(identity, now)))
        return Picture(self.life, self.nodes.members(now), tuple(volumes))

    def expire(self, now: float) -> tuple[str, ...]:
        """Drops the claims of nodes whose lease has ended, forgets old ones; gives the names of those newly gone."""
        gone, is_forgotten = self.nodes.expire(now)
        if is_forgotten:
            self._listings.forget_all_but(self.nodes.names())
            held = {one for left in self.nodes for one in left.report.facts.holdings}
            self._owned.forget_all_but(held)
            self._copied = {identity: number for identity, number in self._copied.items() if identity in held}
        self._owned.forget_gone()
        return gone

    def _take_claims(self, report: Report, now: float) -> tuple[Conflict, ...]:
        mounted = frozenset() if report.leaving else report.facts.mounted
        conflicts = self._owned.take(
            report.node, {identity: report.facts.epochs.get(identity, 0) for identity in mounted}, now
        )
        new = conflicts - self._conflicts
        # Told once each, and again if they come back after they were over.
        self._conflicts = {known for known in self._conflicts if known.other != report.node} | conflicts
        return tuple(sorted(new, key=lambda conflict: conflict.identity))

    def _owner_of(self, identity: Identity, now: float) -> Ownership | None:
        self.nodes.see(now)
        return self._owned.of(identity)
