"""Whatever is lost, late, restarted or stopped: no identity belongs to two nodes that hold leases.

The model plays nodes as their workers behave: calls one at a time and numbered, each report whole. Messages
may be lost, their answers too, or come much later; workers start again with or without their mounts; the
coordinator starts again or is stopped for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuse_tier.coordinate.directory import Directory
from fuse_tier.errors import IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import LocalFacts, Report

LEASE = 5.0
NODES = ("a", "b")
IDENTITIES = (Identity.parse("default/llama/0"), Identity.parse("default/llama/1"))

nodes = st.sampled_from(NODES)
identities = st.sampled_from((IDENTITIES[0], *IDENTITIES))
fates = st.sampled_from(["arrives", "arrives", "answer lost", "late", "lost"])


@dataclass
class Node:
    """What a worker and its daemons know."""

    name: str
    life: int = 1
    sequence: int = 0
    mounted: set[Identity] = field(default_factory=set)
    owned: set[Identity] = field(default_factory=set)  # those of them that the coordinator is known to have granted
    lease_until: float = 0.0

    @property
    def instance(self) -> str:
        return f"{self.name}{self.life}"

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


class Claims(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.quiet_until = self.now  # troubles of the coordinator are rare enough that claims are granted between
        self.directory = Directory(LEASE, self.now)
        self.settled = self.now + LEASE
        self.nodes = {name: Node(name) for name in NODES}
        self.late: list[tuple[Node, Callable[[], None]]] = []
        self.cut: set[str] = set()
        self.time_passes(seconds=6)

    def _pass_time(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes.values():
            if self.now >= node.lease_until:
                node.owned.clear()

    def _send(self, node: Node, fate: str, deliver: Callable[[], None], hear: Callable[[], None]) -> None:
        if fate == "late":
            self.late.append((node, deliver))
        elif fate != "lost":
            deliver()
            if fate == "arrives":
                hear()

    @rule(seconds=st.integers(1, 8))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self._pass_time(0.9)
            for name in NODES:
                if name not in self.cut:
                    self.a_node_reports(name=name, fate="arrives")
            self.directory.expire(self.now)

    @rule(name=nodes)
    def a_node_is_cut_off_or_joined_again(self, name: str) -> None:
        self.cut ^= {name}

    @precondition(lambda self: self.now > self.quiet_until)
    @rule(seconds=st.floats(0.1, 30.0))
    def the_coordinator_is_stopped_for_a_while(self, seconds: float) -> None:
        self._pass_time(seconds)
        self.quiet_until = self.now + 2 * LEASE

    @precondition(lambda self: self.now > self.quiet_until)
    @rule()
    def the_coordinator_starts_again(self) -> None:
        self.directory = Directory(LEASE, self.now)
        self.settled = self.now + LEASE
        self.late.clear()  # they were in its sockets
        self.quiet_until = self.now + 2 * LEASE

    @rule(name=nodes, keeps_mounts=st.booleans())
    def a_worker_starts_again(self, name: str, keeps_mounts: bool) -> None:
        node = self.nodes[name]
        known = {member.node: member.instance for member in self.directory.members(self.now)}
        if known.get(name) != node.instance:
            # Its connections end with it. Only of an instance that it knows can the coordinator tell that it is over.
            self.late = [(sender, deliver) for sender, deliver in self.late if sender is not node]
        node.life += 1
        node.sequence = 0
        if not keeps_mounts:
            node.mounted.clear()
            node.owned.clear()

    @rule(name=nodes, fate=fates)
    def a_node_reports(self, name: str, fate: str) -> None:
        node = self.nodes[name]
        sent = self.now
        report = Report(
            name, node.instance, node.next(), f"{name}:1", f"{name}:2", LocalFacts(1, 1, frozenset(node.mounted))
        )

        def deliver() -> None:
            self.directory.report(report, self.now)

        def hear() -> None:
            node.lease_until = sent + LEASE
            for identity in report.facts.mounted:
                if self.now < self.settled and identity not in node.owned:
                    # Cut off for longer than its lease, it may have lost the identity to another node, of which a
                    # coordinator that has just started knows nothing yet. It believes the first that reports, and
                    # tells of the conflict when the other one does.
                    continue
                holder = self.directory.holder(identity, self.now)
                if holder is not None and holder[0].node == name:
                    node.owned.add(identity)

        self._send(node, fate, deliver, hear)

    @rule(name=nodes, identity=identities, fate=fates, reports_first=st.booleans())
    def a_node_claims(self, name: str, identity: Identity, fate: str, reports_first: bool) -> None:
        if reports_first:
            self.a_node_reports(name=name, fate="arrives")
        node = self.nodes[name]
        instance, sequence = node.instance, node.next()

        def deliver() -> None:
            self.directory.claim(identity, name, instance, sequence, self.now)

        def hear() -> None:
            node.mounted.add(identity)
            node.owned.add(identity)

        try:
            self._send(node, fate, deliver, hear)
        except IdentityBusy:
            holder = self.directory.holder(identity, self.now)
            assert holder is not None, "refused because of nobody"
            assert holder[0].node != name, "refused because of itself"
        except TierUnavailable:
            return  # it tries again after a report

    @rule(name=nodes, identity=identities, fate=fates)
    def a_node_releases(self, name: str, identity: Identity, fate: str) -> None:
        node = self.nodes[name]
        if identity not in node.mounted:
            return
        node.mounted.discard(identity)
        node.owned.discard(identity)
        instance, sequence = node.instance, node.next()

        def deliver() -> None:
            self.directory.release(identity, name, instance, sequence, self.now)

        try:
            self._send(node, fate, deliver, lambda: None)
        except TierUnavailable:
            return  # its next report says it

    @precondition(lambda self: self.late)
    @rule(choice=st.integers(min_value=0))
    def a_late_call_arrives(self, choice: int) -> None:
        _, deliver = self.late.pop(choice % len(self.late))
        try:
            deliver()
        except (TierRefused, TierUnavailable, IdentityBusy):
            return  # nobody waits for the answer

    @invariant()
    def an_identity_has_one_owner(self) -> None:
        for identity in IDENTITIES:
            owners = [node.name for node in self.nodes.values() if identity in node.owned]
            assert len(owners) <= 1, f"{identity} belongs to {owners}"


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
