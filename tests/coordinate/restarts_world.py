"""Nodes, pods and a coordinator, for the model of restarts: the nodes behave as their workers do.

What is claimed, asked, restored and joined in that order, what is listed. The coordinator is the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

from hypothesis import event

from fuse_tier.checkpoints import Saved
from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.restarts import Restarts
from fuse_tier.epochs import epoch_of, number_before
from fuse_tier.errors import IdentityBusy, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import LocalFacts, Report
from fuse_tier.restarts import Backup, BranchPoint, Question, Resumption, Verdict

LEASE = 5.0
_KEPT_BESIDE = 2  # steps that jobs leave in their trees beside the newest
RANKS = (0, 1, 2)
NODES = ("a", "b", "c", "d")
RUN = Lineage("llama", world_size=len(RANKS))
IDENTITIES = {rank: Identity("default", "llama", str(rank)) for rank in RANKS}


@dataclass(frozen=True)
class Record:
    """A complete checkpoint in the bucket: the snapshot of each rank that has its step, beside newer ones perhaps."""

    step: int
    parts: dict[str, Saved]


@dataclass
class Node:
    """What a machine has in its RAM, and what its worker knows."""

    name: str
    life: int = 1
    sequence: int = 0
    is_up: bool = True
    listed: dict[Identity, dict[int, Saved]] = field(default_factory=dict)
    resumed: dict[Identity, Resumption] = field(default_factory=dict)
    needed: dict[Identity, tuple[int, ...]] | None = None
    heard_at: float = 0.0  # what is needed
    clock: int = 0  # the highest epoch that it has heard of

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


@dataclass
class Rank:
    """A pod with its volume: where it is, how far its mount has come, and what its files are."""

    number: int
    node: str = ""  # where it is claimed
    epoch: int = 0
    verdict: Verdict | None = None  # its files are those of the step, and it has not joined
    branch_points: tuple[BranchPoint, ...] = ()  # what its files have gone through that have given way
    is_running: bool = False
    began: int | None = None  # the step from which it went on; None: from no files
    highest: int = 0  # of its snapshots
    line: list[Saved] = field(default_factory=list)  # all that has led to its files, the newest last

    @property
    def identity(self) -> Identity:
        return IDENTITIES[self.number]

    def has_passed(self, step: int | None) -> bool:
        """Whether its files have been those of a step since it began."""
        if step == self.began:
            return True
        begun = -1 if self.began is None else self.began
        return step is not None and step > begun and any(saved.step == step for saved in self.line)


class World:
    """All of it at one moment, and what one part of it does by itself."""

    def __init__(self) -> None:
        self.now = 100.0
        self.nodes = {name: Node(name) for name in NODES}
        self.ranks = {rank: Rank(rank) for rank in RANKS}
        self.bucket: dict[Identity, dict[int, Saved]] = {}
        self.records: list[Record] = []
        self.steps_of_restarts: dict[int, int | None] = {}
        self.lost_at = 0.0  # when content was lost
        self.every = 100  # steps the job saves
        self.wanted: int | None = None  # the step that a person has all go back to: nobody has yet
        self.asked_for: int | None = None  # by those who ask now: it may not be complete
        self.gone_back: dict[Identity, BranchPoint] = {}  # the last time that a person wanted it
        self.contents: dict[tuple[SnapshotId, int], int] = {}  # of a snapshot's step: one number, one content
        self.new_contents = count()
        self.begin_coordinator()

    def begin_coordinator(self) -> None:
        self.directory = Directory(LEASE, self.now, int(self.now))
        self.restarts = Restarts(self.directory)

    def report(self, node: Node) -> None:
        if not node.is_up:
            return
        claimed = {rank.identity: rank.epoch for rank in self.ranks.values() if rank.node == node.name}
        facts = LocalFacts(
            1,
            1,
            frozenset(claimed),
            {identity: tuple(sorted(numbers)) for identity, numbers in node.listed.items() if numbers},
            epochs=claimed,
            saved={identity: tuple(numbers.values()) for identity, numbers in node.listed.items() if numbers},
            resumed={
                identity: replace(one, is_over=not self.is_at_work(identity, node))
                for identity, one in node.resumed.items()
            },
        )
        addresses = (f"{node.name}:1", f"{node.name}:2")
        report = Report(node.name, f"{node.name}{node.life}", node.next(), *addresses, facts, clock=node.clock)
        self.directory.report(report, self.now)
        node.clock = max(node.clock, self.directory.clock(self.now))
        self.restarts.hear(report)
        if self.directory.is_settled(self.now):
            node.needed, node.heard_at = self.restarts.needed(node.name, self.now), self.now
        granted = self.directory.granted(node.name, self.now)
        for rank in self.ranks.values():
            if rank.node == node.name and granted.get(rank.identity, 0) > rank.epoch:
                rank.epoch = granted[rank.identity]

    def is_at_work(self, identity: Identity, node: Node) -> bool:
        return any(
            rank.identity == identity and rank.node == node.name and rank.is_running for rank in self.ranks.values()
        )

    def come_up(self, node: Node) -> None:
        node.is_up = True
        node.life += 1
        node.sequence = 0
        node.needed = None
        self.report(node)

    @staticmethod
    def step_of(rank: Rank) -> int:
        return (rank.line[-1].step or 0) if rank.line else 0

    def save(self, rank: Rank, step: int, *, is_unheard: bool = False) -> None:
        rank.highest = max(rank.highest, number_before(rank.epoch)) + 1
        assert epoch_of(rank.highest) == rank.epoch, "an epoch below that of a snapshot"
        before = rank.line[-1].steps if rank.line else ()
        older = tuple(one for one in before if one < step)[-_KEPT_BESIDE:]
        saved = Saved(SnapshotId(rank.identity, rank.highest), RUN, step, 0, older=older)
        for one in saved.steps:
            # What was lost or given up, and is saved again, is another step of that number.
            known = self.contents[rank.line[-1].id, one] if one in before else next(self.new_contents)
            self.contents[saved.id, one] = known
        rank.line.append(saved)
        self.nodes[rank.node].listed.setdefault(rank.identity, {})[saved.id.number] = saved
        if not is_unheard:
            self.report(self.nodes[rank.node])

    def newest(self, rank: Rank) -> Saved | None:
        """The snapshot that its files are, as its node lists it."""
        if not rank.is_running or not rank.line:
            return None
        return self.nodes[rank.node].listed.get(rank.identity, {}).get(rank.line[-1].id.number)

    def release(self, rank: Rank) -> None:
        node = self.nodes.get(rank.node)
        if node is None or not node.is_up:
            return
        self.end(rank)
        self.report(node)

    @staticmethod
    def end(rank: Rank) -> None:
        rank.node, rank.verdict, rank.is_running, rank.branch_points = "", None, False, ()

    def begin_again(self, rank: Rank) -> None:
        node = self.nodes.get(rank.node)
        if node is None or not node.is_up or not rank.is_running:
            return
        with suppress(IdentityBusy, TierUnavailable):
            rank.epoch = self.directory.claim(
                rank.identity, node.name, f"{node.name}{node.life}", node.next(), self.now
            )
            node.clock = max(node.clock, rank.epoch)
            event("a container is started again in place")
            rank.is_running, rank.verdict = False, None
            self.report(node)

    def question(self, rank: Rank) -> Question:
        backups = tuple(
            Backup(
                record.step,
                record.parts[str(rank.number)].id.number,
                min(part.id.epoch for part in record.parts.values()),
            )
            for record in self.records
        )
        return Question(rank.identity, RUN, backups, forced=self.asked_for)

    def holds_lease(self, rank: Rank) -> bool:
        owned = self.directory.owner(rank.identity, self.now)
        return owned is not None and owned.node == rank.node

    def is_told(self, identity: Identity, point: BranchPoint) -> bool:
        """Whether a node that is up knows that a volume went back."""
        told = [node.resumed[identity] for node in self.nodes.values() if node.is_up and identity in node.resumed]
        return any(one.gives_up(point.rank + 1, point.epoch - 1) for one in told)

    def has_backup_of_another_life(self, step: int) -> bool:
        """Whether the bucket has a step that the job has gone back from."""
        return any(
            self.contents[part.id, step]
            not in {self.contents[saved.id, step] for saved in self.ranks[int(rank)].line if step in saved.steps}
            for record in self.records
            if record.step == step
            for rank, part in record.parts.items()
        )

    def has(self, identity: Identity, number: int) -> bool:
        return any(number in listed for listed in self.holders(identity))

    def holders(self, identity: Identity) -> Iterator[dict[int, Saved]]:
        yield self.bucket.get(identity, {})
        for node in self.nodes.values():
            if node.is_up:
                yield node.listed.get(identity, {})

    def complete(self) -> int | None:
        """The newest step that every rank has come through, of which every part is somewhere."""
        passed = {
            str(rank.number): {self.contents[saved.id, step]: step for saved in rank.line for step in saved.steps}
            for rank in self.ranks.values()
        }
        steps: list[set[int]] = []
        for one, own in passed.items():
            held = [saved for listed in self._in_ram(IDENTITIES[int(one)]) for saved in listed.values()]
            there = {self.contents[saved.id, step] for saved in held for step in saved.steps}
            steps.append({step for content, step in own.items() if content in there})
        backed_up = {
            record.step
            for record in self.records
            if all(self.contents[part.id, record.step] in passed[one] for one, part in record.parts.items())
        }
        return max(set.intersection(*steps) | backed_up, default=None)

    def _in_ram(self, identity: Identity) -> Iterator[dict[int, Saved]]:
        return (node.listed.get(identity, {}) for node in self.nodes.values() if node.is_up)
