"""What a coordinator knows: who is alive, who holds what, and which node has which identity mounted.

Pure and synchronous: time comes in as monotonic seconds, nothing is sent, nothing is stored. It keeps no
truth of its own: everything is rebuilt from the nodes' reports, each of which is whole. The invariant: an
identity is granted to no node while another that may have it mounted holds a lease.

A node holds a lease for ``lease_seconds`` after each report. Its claims are what its newest report calls
mounted, and what it was granted since. Each instance of a node numbers its calls; one that was overtaken is
refused, so that a claim or a report that was stuck on the way cannot undo a later one. (Calls of an instance
that nobody here knew cannot be told from those of a later one: they end with its connections.) Whose claim counts,
and under which epoch, is decided in ``ownership.py``.
"""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fuse_tier.coordinate.ownership import Conflict, Ownership, Ownerships
from fuse_tier.epochs import EpochClock
from fuse_tier.errors import IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Holdings, Location, Member, Picture, Report, VolumePicture
from fuse_tier.standing import Standing

FORGET_SECONDS = 3600.0  # how long a node that is gone is still shown
_PAUSE_PER_NODE_SECONDS = 0.002  # between two reports: 500 a second, whatever the number of nodes
_PAUSES_IN_A_LEASE = 5.0  # of few nodes
_LEAST_PAUSES_IN_A_LEASE = 2.5  # of thousands; a report that fails is tried again within a second or so
_LONGEST_HEARD_SECONDS = 120.0  # a lease of an earlier coordinator that is waited for


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether a node is there, and what it said last. ``gone_seconds`` is endless for one that left in order."""

    alive: bool
    gone_seconds: float
    mounted: frozenset[Identity]
    bucket: Holdings
    standings: tuple[Standing, ...] = ()


class Change(enum.StrEnum):
    """What a report says of its node."""

    JOINED = "joined"
    SAME = "same"
    RESTARTED = "restarted"
    RETURNED = "returned"  # the same process, after its lease had ended
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of a report; ``conflicts`` are those not told before."""

    change: Change
    conflicts: tuple[Conflict, ...]


@dataclass(slots=True)
class _Node:
    report: Report
    sequence: int
    expires: float
    announced_gone: bool = False
    superseded: deque[str] = field(default_factory=lambda: deque(maxlen=8))


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
        self._shortest_lease = lease_seconds
        self.life = secrets.token_hex(8)
        self._domain_of = domain_of
        self._nodes: dict[str, _Node] = {}
        self._clock = EpochClock(epoch, now)
        self._began = now
        self._owned = Ownerships(self._clock, now + lease_seconds, max(1.0, lease_seconds / 2), self._lives)
        self._conflicts: set[Conflict] = set()
        self._copied: dict[Identity, int] = {}  # the newest that a node had which had not mounted the volume
        self._observed = self._now = now
        self.comings_and_goings = 0  # grows whenever another set of nodes is alive

    @property
    def lease_seconds(self) -> float:
        """How long a node counts as alive after a report: longer where there are many."""
        return max(self._shortest_lease, _LEAST_PAUSES_IN_A_LEASE * self.pause_seconds)

    @property
    def pause_seconds(self) -> float:
        """After how long a node reports again that has nothing new to say."""
        return max(self._shortest_lease / _PAUSES_IN_A_LEASE, _PAUSE_PER_NODE_SECONDS * len(self._nodes))

    def last_report(self, node: str, instance: str, sequence: int) -> Report | None:
        """A node's report of this number, if it is the last that was accepted."""
        known = self._nodes.get(node)
        told = known.report if known is not None else None
        return told if told is not None and (told.instance, told.sequence) == (instance, sequence) else None

    def report(self, report: Report, now: float) -> Accepted:
        """Takes a node's report in and renews its lease.

        Raises TierRefused when the name belongs to another node that is alive, or the report was overtaken.
        """
        self._observe(now)
        change = Change.SAME
        known = self._nodes.get(report.node)
        if known is None:
            change = Change.JOINED
            known = self._nodes[report.node] = _Node(report, report.sequence, now)
        elif known.report.instance != report.instance:
            self._check_name(known, report, now)
            change = Change.RESTARTED
            known.superseded.append(known.report.instance)
            with suppress(ValueError):  # a node of another address that is back, after the lease of who had its name
                known.superseded.remove(report.instance)
        else:
            _check_sequence(known, report.node, report.sequence)
            change = Change.SAME if now < known.expires else Change.RETURNED
        known.report = report
        known.sequence = report.sequence
        if not self.is_settled(now):  # the lease that it had from the coordinator before may be a longer one
            self._owned.settle_at(self._began + min(report.lease_seconds, _LONGEST_HEARD_SECONDS))
        known.expires = now if report.leaving else now + self.lease_seconds
        known.announced_gone = report.leaving
        if report.leaving:
            change = Change.LEFT
        if change is not Change.SAME:
            self.comings_and_goings += 1
        for identity, numbers in report.facts.holdings.items():
            if numbers and identity not in report.facts.mounted:
                self._copied[identity] = max(numbers[-1], self._copied.get(identity, 0))
        self._owned.hear(report.clock, (report.facts.holdings, report.facts.bucket), now)
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
        self._observe(now)
        caller = self._caller(node, instance, sequence, now)
        owned = self._owner_of(identity, now)
        if owned is not None and owned.node != node:
            holder = self._nodes[owned.node].report
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
        self._observe(now)
        caller = self._caller(node, instance, sequence, now)
        caller.sequence = sequence
        facts = caller.report.facts  # else what it has would be passed over for whoever claims next: see locate
        caller.report = replace(caller.report, facts=replace(facts, mounted=facts.mounted - {identity}))
        self._owned.release(identity, node)

    def called(self, node: str, instance: str, sequence: int, now: float) -> None:
        """A node asks for something. Raises TierUnavailable and TierRefused as ``claim`` does."""
        self._observe(now)
        self._caller(node, instance, sequence, now).sequence = sequence

    def owner(self, identity: Identity, now: float) -> Ownership | None:
        """The live node that has the identity, and under which epoch."""
        return self._owner_of(identity, now)

    def alive(self, nodes: Iterable[str], now: float) -> frozenset[str]:
        """Those of some nodes that hold a lease."""
        self._now = now
        return frozenset(node for node in nodes if self._lives(node))

    def gone_for(self, seconds: float, now: float) -> frozenset[str]:
        """Nodes that left in order, or whose lease ended so long ago."""
        return frozenset(
            name
            for name, known in self._nodes.items()
            if now >= known.expires and (known.report.leaving or now - known.expires >= seconds)
        )

    def presence(self, now: float) -> dict[str, Presence]:
        """Every node known."""
        return {
            name: Presence(
                now < known.expires,
                float("inf") if known.report.leaving else now - known.expires,
                known.report.facts.mounted,
                known.report.facts.bucket,
                known.report.facts.standings,
            )
            for name, known in self._nodes.items()
        }

    def holder(self, identity: Identity, now: float) -> tuple[Member, float] | None:
        """The live node that has the identity, and for how many seconds its lease still runs."""
        owned = self._owner_of(identity, now)
        if owned is None:
            return None
        known = self._nodes[owned.node]
        return self._member(known, now), known.expires - now

    def member(self, node: str, now: float) -> Member:
        """A node that has reported."""
        return self._member(self._nodes[node], now)

    def members(self, now: float) -> tuple[Member, ...]:
        """Every node known, by name, those that are gone included."""
        return tuple(self._member(known, now) for _, known in sorted(self._nodes.items()))

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
        for known in self._nodes.values():
            bucket.update(known.report.facts.bucket.get(identity, ()))
            is_left = identity in known.report.facts.mounted and owned is not None and owned.node != known.report.node
            if numbers := known.report.facts.holdings.get(identity):
                (left if is_left else holders).append((self._member(known, now), numbers))
        if holders or bucket:
            left = [(member, tuple(number for number in numbers if number <= copied)) for member, numbers in left]
        holders += [(member, numbers) for member, numbers in left if numbers]
        holders.sort(key=lambda holder: (not holder[0].alive, -holder[1][-1], holder[0].node))
        return Location(tuple(holders), tuple(sorted(bucket)), copied, self.is_settled(now))

    def picture(self, now: float) -> Picture:
        """Everything, for people."""
        identities = self._owned.identities()
        for known in self._nodes.values():
            identities.update(known.report.facts.holdings, known.report.facts.bucket)
        volumes = []
        for identity in sorted(identities):
            owned = self._owner_of(identity, now)
            volumes.append(VolumePicture(identity, owned.node if owned else "", self.locate(identity, now)))
        return Picture(self.life, self.members(now), tuple(volumes))

    def known_domain(self, node: str) -> Domain:
        """What others than the node itself say of what it fails together with."""
        return self._domain_of(node) if self._domain_of else Domain()

    def expire(self, now: float) -> tuple[str, ...]:
        """Drops the claims of nodes whose lease has ended, forgets old ones; gives the names of those newly gone."""
        self._observe(now)
        gone, forgotten = [], False
        for name, known in list(self._nodes.items()):
            if now < known.expires:
                continue
            if not known.announced_gone:
                known.announced_gone = True
                gone.append(name)
                self.comings_and_goings += 1
            if now >= known.expires + FORGET_SECONDS:
                del self._nodes[name]
                forgotten = True
        if forgotten:
            held = {one for left in self._nodes.values() for one in left.report.facts.holdings}
            self._owned.forget_all_but(held)
            self._copied = {identity: number for identity, number in self._copied.items() if identity in held}
        self._owned.forget_gone()
        return tuple(sorted(gone))

    def _observe(self, now: float) -> None:
        """Renews the leases that ran when we last looked, if that is so long ago that reports may lie unread.

        A coordinator that was stopped (SIGSTOP, a frozen machine) finds on waking all reports of that time in
        its sockets, behind claims perhaps.
        """
        if now - self._observed > self.lease_seconds / 2:
            for known in self._nodes.values():
                if known.expires > self._observed:
                    known.expires = max(known.expires, now + self.lease_seconds)
        self._observed = self._now = now

    def _check_name(self, known: _Node, report: Report, now: float) -> None:
        if known.report.control == report.control:
            # An earlier life at this address never comes back, but a call of it may still arrive, however late.
            if report.instance in known.superseded:
                raise TierRefused(
                    f"another process has taken over as node {report.node!r} at {report.control}: if there are two, "
                    "give one of them another name and address in its node.yaml"
                )
        elif now < known.expires:
            raise TierRefused(
                f"two nodes are called {report.node!r}: one at {known.report.control}, which is alive, and one at "
                f"{report.control}, which is refused. Give one of them another name in its node.yaml; if the first "
                f"has gone for good, start the second again in {known.expires - now:.1f} s"
            )

    def _take_claims(self, report: Report, now: float) -> tuple[Conflict, ...]:
        mounted = frozenset() if report.leaving else report.facts.mounted
        conflicts = self._owned.take(
            report.node, {identity: report.facts.epochs.get(identity, 0) for identity in mounted}, now
        )
        new = conflicts - self._conflicts
        # Told once each, and again if they come back after they were over.
        self._conflicts = {known for known in self._conflicts if known.other != report.node} | conflicts
        return tuple(sorted(new, key=lambda conflict: conflict.identity))

    def _caller(self, node: str, instance: str, sequence: int, now: float) -> _Node:
        known = self._nodes.get(node)
        if known is not None and instance in known.superseded:
            raise TierRefused(
                f"another process reports as node {node} at {known.report.control}: if there are two, give one of "
                "them another name in its node.yaml"
            )
        if known is None or now >= known.expires or known.report.instance != instance:
            raise TierUnavailable(f"the coordinator has no report of node {node} yet: try again in a second")
        _check_sequence(known, node, sequence)
        return known

    def _owner_of(self, identity: Identity, now: float) -> Ownership | None:
        self._now = now
        return self._owned.of(identity)

    def _lives(self, node: str) -> bool:
        known = self._nodes.get(node)
        return known is not None and self._now < known.expires

    def _member(self, known: _Node, now: float) -> Member:
        report = known.report
        return Member(
            node=report.node,
            instance=report.instance,
            control=report.control,
            bulk=report.bulk,
            alive=now < known.expires,
            capacity_bytes=report.facts.capacity_bytes,
            free_bytes=report.facts.free_bytes,
            domain=self.known_domain(report.node).or_else(report.domain),
            mounted=report.facts.mounted,
        )


def _check_sequence(known: _Node, node: str, sequence: int) -> None:
    if sequence <= known.sequence:
        raise TierRefused(
            f"call {sequence} of node {node} was overtaken by call {known.sequence} and is void: nothing need be done"
        )
