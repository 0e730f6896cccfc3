"""Which nodes there are: who holds a lease, what each has said last, and whose call it is.

A node holds a lease for ``lease_seconds`` after each report, longer where there are many. Each instance of a node
numbers its calls; one that was overtaken is refused, so that a claim or a report that was stuck on the way cannot
undo a later one. (Calls of an instance that nobody here knew cannot be told from those of a later one: they end with
its connections.) Pure: time comes in.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Holdings, Member, Report
from fuse_tier.standing import Standing

FORGET_SECONDS = 3600.0  # how long a node that is gone is still shown
_PAUSE_PER_NODE_SECONDS = 0.002  # between two reports: 500 a second, whatever the number of nodes
_PAUSES_IN_A_LEASE = 5.0  # of few nodes
_LEAST_PAUSES_IN_A_LEASE = 2.5  # of thousands; a report that fails is tried again within a second or so


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


@dataclass(slots=True)
class KnownNode:
    """One node, as its newest report has it."""

    report: Report
    sequence: int
    expires: float
    announced_gone: bool = False
    superseded: deque[str] = field(default_factory=lambda: deque(maxlen=8))


class Nodes:
    """All that have reported. ``now`` is monotonic seconds, never less than in the call before."""

    def __init__(self, lease_seconds: float, now: float, domain_of: Callable[[str], Domain] | None) -> None:
        self._shortest_lease = lease_seconds
        self._domain_of = domain_of
        self._nodes: dict[str, KnownNode] = {}
        self._observed = self._now = now
        self.comings_and_goings = 0  # grows whenever another set of nodes is alive

    def __iter__(self) -> Iterator[KnownNode]:
        return iter(self._nodes.values())

    def names(self) -> Collection[str]:
        """Of all that are known."""
        return self._nodes.keys()

    def of(self, node: str) -> KnownNode:
        """One that has reported."""
        return self._nodes[node]

    def see(self, now: float) -> None:
        """It is this moment."""
        self._now = now

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

    def hear(self, report: Report, now: float) -> Change:
        """Takes a node's report in and renews its lease.

        Raises TierRefused when the name belongs to another node that is alive, or the report was overtaken.
        """
        self.observe(now)
        change = Change.SAME
        known = self._nodes.get(report.node)
        if known is None:
            change = Change.JOINED
            known = self._nodes[report.node] = KnownNode(report, report.sequence, now)
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
        known.expires = now if report.leaving else now + self.lease_seconds
        known.announced_gone = report.leaving
        if report.leaving:
            change = Change.LEFT
        if change is not Change.SAME:
            self.comings_and_goings += 1
        return change

    def caller(self, node: str, instance: str, sequence: int, now: float) -> KnownNode:
        """Who calls. Raises TierUnavailable and TierRefused as ``Directory.claim`` does."""
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

    def called(self, node: str, instance: str, sequence: int, now: float) -> None:
        """A node asks for something. Raises TierUnavailable and TierRefused as ``claim`` does."""
        self.observe(now)
        self.caller(node, instance, sequence, now).sequence = sequence

    def alive(self, nodes: Iterable[str], now: float) -> frozenset[str]:
        """Those of some nodes that hold a lease."""
        self._now = now
        return frozenset(node for node in nodes if self.lives(node))

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

    def member(self, node: str, now: float) -> Member:
        """A node that has reported."""
        return self.shown(self._nodes[node], now)

    def members(self, now: float) -> tuple[Member, ...]:
        """Every node known, by name, those that are gone included."""
        return tuple(self.shown(known, now) for _, known in sorted(self._nodes.items()))

    def known_domain(self, node: str) -> Domain:
        """What others than the node itself say of what it fails together with."""
        return self._domain_of(node) if self._domain_of else Domain()

    def expire(self, now: float) -> tuple[tuple[str, ...], bool]:
        """The names of those that are newly gone, and whether others were forgotten."""
        self.observe(now)
        gone, is_forgotten = [], False
        for name, known in list(self._nodes.items()):
            if now < known.expires:
                continue
            if not known.announced_gone:
                known.announced_gone = True
                gone.append(name)
                self.comings_and_goings += 1
            elif now >= known.expires + FORGET_SECONDS:
                del self._nodes[name]
                is_forgotten = True
        return tuple(sorted(gone)), is_forgotten

    def observe(self, now: float) -> None:
        """Renews the leases that ran when we last looked, if that is so long ago that reports may lie unread.

        A coordinator that was stopped (SIGSTOP, a frozen machine) finds on waking all reports of that time in
        its sockets, behind claims perhaps.
        """
        if now - self._observed > self.lease_seconds / 2:
            for known in self._nodes.values():
                if known.expires > self._observed:
                    known.expires = max(known.expires, now + self.lease_seconds)
        self._observed = self._now = now

    def _check_name(self, known: KnownNode, report: Report, now: float) -> None:
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

    def lives(self, node: str) -> bool:
        """Whether it holds a lease at the moment that was seen last."""
        known = self._nodes.get(node)
        return known is not None and self._now < known.expires

    def shown(self, known: KnownNode, now: float) -> Member:
        """A node as others are told of it."""
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


def _check_sequence(known: KnownNode, node: str, sequence: int) -> None:
    if sequence <= known.sequence:
        raise TierRefused(
            f"call {sequence} of node {node} was overtaken by call {known.sequence} and is void: nothing need be done"
        )
