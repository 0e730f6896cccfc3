"""What the coordinator has nodes keep for the sake of a whole job; the rest is in the model of restarts."""

from __future__ import annotations

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.coordinate.directory import Directory
from fuse_tier.coordinate.restarts import Restarts
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.members import LocalFacts, Report
from fuse_tier.standing import Standing

LEASE = 5.0
RUN = Lineage("llama", world_size=2)


class Cluster:
    """Nodes that report what they list, a step of a rank as ``(rank, step)``; its snapshot has the step's number."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sequence = 0
        self.directory = Directory(LEASE, self.now)
        self.restarts = Restarts(self.directory)
        self.now = LEASE + 1

    def say(self, node: str, *listed: tuple[int, int], in_bucket: tuple[Standing, ...] = ()) -> None:
        self.sequence += 1
        saved: dict[Identity, tuple[Saved, ...]] = {}
        for rank, step in listed:
            identity = Identity("default", "llama", str(rank))
            saved[identity] = (*saved.get(identity, ()), Saved(SnapshotId(identity, step), RUN, step, 0))
        facts = LocalFacts(
            1,
            1,
            frozenset(),
            {one: tuple(part.id.number for part in parts) for one, parts in saved.items()},
            saved=saved,
            standings=in_bucket,
        )
        report = Report(node, f"{node}1", self.sequence, f"{node}:1", f"{node}:2", facts)
        self.directory.report(report, self.now)
        self.restarts.hear(report)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.directory.expire(self.now)

    def needed(self, node: str) -> set[tuple[int, int]]:
        """What a node is to keep, as it listed it."""
        needed = self.restarts.needed(node, self.now)
        return {(int(identity.replica), number) for identity, numbers in needed.items() for number in numbers}


def test_the_newest_complete_step_stays() -> None:
    cluster = Cluster()
    cluster.say("a", (0, 100), (0, 200))
    cluster.say("b", (1, 100), (1, 200), (1, 300))

    assert cluster.needed("a") == {(0, 200)}
    assert cluster.needed("b") == {(1, 200)}


def test_when_a_node_is_gone_what_is_complete_without_it_stays() -> None:
    cluster = Cluster()
    cluster.say("a", (0, 200))
    cluster.say("b", (1, 100), (1, 200))
    cluster.say("c", (0, 100))
    assert cluster.needed("b") == {(1, 200)}

    cluster.wait(4)
    cluster.say("b", (1, 100), (1, 200))
    cluster.say("c", (0, 100))
    cluster.wait(2)

    assert cluster.needed("b") == {(1, 100), (1, 200)}  # of 200 a part may come back
    assert cluster.needed("c") == {(0, 100), (0, 200)}


def test_the_newest_step_of_which_every_part_is_on_two_nodes_stays_until_a_newer_one_is() -> None:
    cluster = Cluster()
    cluster.say("a", (0, 100), (0, 200), (1, 100), (1, 200))
    cluster.say("b", (1, 100), (1, 200))
    cluster.say("c", (0, 100))
    assert cluster.needed("a") == {(0, 100), (0, 200), (1, 100), (1, 200)}
    assert cluster.needed("b") == {(1, 100), (1, 200)}

    cluster.wait(2)
    cluster.say("c", (0, 100), (0, 200))

    assert cluster.needed("a") == {(0, 200), (1, 200)}
    assert cluster.needed("b") == {(1, 200)}


def test_what_a_node_said_of_the_bucket_counts_no_longer_than_the_next_one_needs_to_look_there() -> None:
    def in_bucket(*steps: int) -> tuple[Standing, ...]:
        return tuple(Standing(Job("default", "llama"), "llama", 2, step, step, 1, ("bucket",)) for step in steps)

    def told() -> list[int | None]:
        return [one.step for one in cluster.restarts.standings(cluster.now)]

    cluster = Cluster()
    cluster.say("a", in_bucket=in_bucket(100, 200))
    cluster.wait(int(LEASE) + 30)
    assert told() == [200, 100]
    cluster.say("b", in_bucket=in_bucket(200))
    cluster.wait(40)
    cluster.say("b", in_bucket=in_bucket(200))
    assert told() == [200], "100 is not in the bucket any more"
