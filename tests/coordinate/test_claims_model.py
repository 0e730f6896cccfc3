"""Whatever is lost, late, restarted or stopped: no identity belongs to two nodes that hold leases, and what an owner
saves is newer than all that was saved before.

The model plays nodes as their workers behave: calls one at a time and numbered, each report whole. Messages
may be lost, their answers too, or come much later; workers start again with or without their mounts; the
coordinator starts again, with its clock set back perhaps, or is stopped for a while. What an owner saves counts when
another node that can be reached has it, too; what a node that was cut off saves by itself does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuse_tier.coordinate.directory import Directory
from fuse_tier.epochs import number_after, number_before
from fuse_tier.errors import IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import LocalFacts, Report
from tests.harness.examples import examples

T = TypeVar("T")

LEASE = 5.0
NODES = ("a", "b")
WITNESS = "c"  # has a copy of whatever is saved, mounts nothing, and is never cut off
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
    mounted: dict[Identity, int] = field(default_factory=dict)  # with the epochs
    owned: set[Identity] = field(default_factory=set)  # those of them that the coordinator is known to have granted
    lease_until: float = 0.0
    clock: int = 0
    tree: dict[Identity, int] = field(default_factory=dict)  # the newest snapshot that what is mounted goes on from
    listed: dict[Identity, int] = field(default_factory=dict)  # the newest snapshot in its RAM

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
        self.directory = Directory(LEASE, self.now, int(self.now))
        self.settled = self.now + LEASE
        self.nodes = {name: Node(name) for name in (*NODES, WITNESS)}
        self.granted: dict[Identity, tuple[int, str]] = {}  # the highest epoch, and whose it is
        self.late: list[tuple[Node, Callable[[], object]]] = []
        self.cut: set[str] = set()
        self.time_passes(seconds=6)

    def _pass_time(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes.values():
            if self.now >= node.lease_until:
                node.owned.clear()

    def _send(self, node: Node, fate: str, deliver: Callable[[], T], hear: Callable[[T], None]) -> None:
        if fate == "late":
            self.late.append((node, deliver))
        elif fate != "lost":
            answer = deliver()
            if fate == "arrives":
                hear(answer)

    def _note_granted(self, identity: Identity, epoch: int, name: str) -> None:
        highest, owner = self.granted.get(identity, (0, name))
        assert epoch > highest or (epoch == highest and owner == name), f"{name} got {epoch}, {owner} had {highest}"
        self.granted[identity] = (epoch, name)

    @rule(seconds=st.integers(1, 8))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self._pass_time(0.9)
            for name in self.nodes:
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
    @rule(set_back=st.sampled_from([0.0, 0.0, 86400.0]))
    def the_coordinator_starts_again(self, set_back: float) -> None:
        self.directory = Directory(LEASE, self.now, max(1, int(self.now - set_back)))
        self.settled = self.now + LEASE
        self.late.clear()  # they were in its sockets
        self.quiet_until = self.now + 2 * LEASE

    @rule(name=nodes, keeps_mounts=st.booleans())
    def a_worker_starts_again(self, name: str, keeps_mounts: bool) -> None:
        node = self.nodes[name]
        known = {member.node: member.instance for member in self.directory.nodes.members(self.now)}
        if known.get(name) != node.instance:
            # Its connections end with it. Only of an instance that it knows can the coordinator tell that it is over.
            self.late = [(sender, deliver) for sender, deliver in self.late if sender is not node]
        node.life += 1
        node.sequence = 0
        node.clock = 0
        if not keeps_mounts:
            node.mounted.clear()
            node.owned.clear()

    @rule(name=nodes, fate=fates)
    def a_node_reports(self, name: str, fate: str) -> None:
        node = self.nodes[name]
        sent, life = self.now, node.life
        held = {identity: (number,) for identity, number in node.listed.items()}
        facts = LocalFacts(1, 1, frozenset(node.mounted), held, epochs=dict(node.mounted))
        report = Report(name, node.instance, node.next(), f"{name}:1", f"{name}:2", facts, clock=node.clock)

        def deliver() -> dict[Identity, int]:
            self.directory.report(report, self.now)
            return self.directory.granted(name, self.now)

        def hear(granted: dict[Identity, int]) -> None:
            if life != node.life:
                return
            node.lease_until = sent + LEASE
            node.clock = self.directory.clock(self.now)
            for identity in facts.mounted:
                if identity not in granted:
                    node.owned.discard(identity)
                    if self.now >= self.settled:
                        self._go_on(node, identity)
                    continue
                if granted[identity] > node.mounted[identity]:
                    node.mounted[identity] = granted[identity]
                self._note_granted(identity, granted[identity], name)
                node.owned.add(identity)

        self._send(node, fate, deliver, hear)

    def _go_on(self, node: Node, identity: Identity) -> None:
        """It has a volume mounted that is not its own any more, it is told."""
        try:
            epoch = self.directory.claim(
                identity, node.name, node.instance, node.next(), self.now, goes_on=node.mounted[identity]
            )
        except IdentityBusy:  # another goes on with it: what is mounted here counts no more
            del node.mounted[identity]
            node.listed.pop(identity, None)
        except TierUnavailable:
            return
        else:
            self._own(node, identity, epoch)

    def _own(self, node: Node, identity: Identity, epoch: int) -> None:
        self._note_granted(identity, epoch, node.name)
        node.mounted[identity] = epoch
        node.owned.add(identity)

    @rule(name=nodes, identity=identities, fate=fates, reports_first=st.booleans())
    def a_node_claims(self, name: str, identity: Identity, fate: str, reports_first: bool) -> None:
        if reports_first:
            self.a_node_reports(name=name, fate="arrives")
        node = self.nodes[name]
        if identity in node.mounted:
            return
        instance, sequence = node.instance, node.next()

        def deliver() -> int:
            return self.directory.claim(identity, name, instance, sequence, self.now)

        def hear(epoch: int) -> None:
            self._own(node, identity, epoch)
            node.tree[identity] = max(self._copy(identity), node.listed.get(identity, 0))  # it is restored

        try:
            self._send(node, fate, deliver, hear)
        except IdentityBusy:
            holder = self.directory.holder(identity, self.now)
            assert holder is not None, "refused because of nobody"
            assert holder[0].node != name, "refused because of itself"
        except TierUnavailable:
            return  # it tries again after a report

    @rule(name=nodes, identity=identities, saves=st.booleans())
    def a_node_goes_on_with_what_another_had_that_is_cut_off(
        self, name: str, identity: Identity, saves: bool
    ) -> None:
        """What all of this is about; by chance alone it comes about too rarely."""
        self.cut = {other for other in NODES if other != name}
        self.time_passes(seconds=7)
        self.a_node_claims(name=name, identity=identity, fate="arrives", reports_first=True)
        if saves:
            self.a_node_saves(name=name, identity=identity)

    @rule(name=nodes, identity=identities)
    def a_node_saves(self, name: str, identity: Identity) -> None:
        node = self.nodes[name]
        if identity not in node.mounted:
            return
        epoch, before = node.mounted[identity], self._copy(identity)
        number = max(node.tree.get(identity, 0), number_before(epoch)) + 1
        assert number < number_after(epoch), "it saves under an epoch that is not its own"
        if name not in self.cut and identity in node.owned:
            assert node.tree.get(identity, 0) >= before, f"what {name} saves has not what was saved before"
            assert number > before, f"{number} of {name} does not count as newer than {before}"
            self.nodes[WITNESS].listed[identity] = number
        node.tree[identity] = node.listed[identity] = number

    def _copy(self, identity: Identity) -> int:
        return self.nodes[WITNESS].listed.get(identity, 0)

    @rule(name=nodes, identity=identities, told=fates, fate=fates)
    def a_node_releases(self, name: str, identity: Identity, told: str, fate: str) -> None:
        node = self.nodes[name]
        if identity not in node.mounted:
            return
        self.a_node_reports(name=name, fate=told)  # what it has saved is told first
        node.mounted.pop(identity, None)
        node.owned.discard(identity)
        if told != "arrives":
            return  # its next report says both
        instance, sequence = node.instance, node.next()

        def deliver() -> None:
            self.directory.release(identity, name, instance, sequence, self.now)

        try:
            self._send(node, fate, deliver, lambda _: None)
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
TestClaims.settings = settings(max_examples=examples(200), stateful_step_count=60, deadline=None)
