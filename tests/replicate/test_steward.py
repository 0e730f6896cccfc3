"""A node's way to the steward: over real gRPC, whoever answers, and whoever does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.checkpoints import Job
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import NotFound, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import Member
from fuse_tier.replicate.backup import Turn, Turns
from fuse_tier.replicate.election import rank
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.readers import Readers
from fuse_tier.replicate.records import InBucket
from fuse_tier.replicate.sharing import Sharing
from fuse_tier.replicate.steward import Steward, mounted_replicas
from fuse_tier.replicate.steward_service import StewardService
from fuse_tier.replicate.stewardship import Stewardship
from fuse_tier.wire.control_pb2_grpc import add_StewardServicer_to_server
from fuse_tier.wire.grpc import serve
from tests.harness.logs import ExpectedLogs

PLACE = "gs://checkpoints/team"
ZERO = Identity.parse("default/llama/0")


@dataclass
class Work:
    """What a steward would do with a bucket; the test says what comes of it."""

    numbers: tuple[int, ...]
    error: Exception | None = None
    hangs: bool = False
    asked: int = 0
    noted: list[Job] = field(default_factory=list)
    turns: Turns = field(default_factory=Turns)

    async def in_bucket(self, identity: Identity, version: str = "") -> InBucket:
        self.asked += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.error is not None:
            raise self.error
        return InBucket(self.numbers, forced=7 if version else 0, version=version)

    def note(self, job: Job) -> None:
        self.noted.append(job)

    def turn(self, job: Job, run: str, step: int, every: float) -> Turn:
        return self.turns.ask(job, run, step, every, 0.0)


@dataclass
class Members:
    """Who is there; the node that asks is the last in the bucket's order."""

    names: tuple[str, ...]
    addresses: dict[str, str]

    def own(self) -> Member:
        return Member(self.names[-1], "1", self.addresses[self.names[-1]], "", alive=True)

    def members(self) -> tuple[Member, ...]:
        return tuple(Member(name, "1", self.addresses[name], "", alive=True) for name in self.names[:-1])


@dataclass
class Cluster:
    """Three nodes in the bucket's order: the steward, who stands in for it, and who asks."""

    works: list[Work]
    members: Members
    steward: Steward
    nursery: trio.Nursery
    lists: dict[str, Sharing] = field(default_factory=lambda: defaultdict(Sharing))  # that each node keeps of readers

    def readers(self, node: str) -> Readers:
        """As that node has them."""
        own = Members((*(name for name in self.members.names if name != node), node), self.members.addresses)
        return Readers(PLACE, cast(Membership, own), self.lists[node], None)

    async def start(self, index: int, place: str = PLACE) -> None:
        node = self.members.names[index]
        own = Members((*(name for name in self.members.names if name != node), node), self.members.addresses)
        readers = Readers(place, cast(Membership, own), self.lists[node], None)
        service = StewardService(cast(Stewardship, self.works[index]), readers, place)
        address = self.members.addresses[node]

        async def run(task_status: trio.TaskStatus[int]) -> None:
            services: list[Any] = [(add_StewardServicer_to_server, service)]
            await serve(services, address, None, task_status=task_status)

        await self.nursery.start(run)


@pytest.fixture
async def cluster(nursery: trio.Nursery) -> AsyncIterator[Cluster]:
    names = rank(PLACE, ["a", "b", "c"])
    members = Members(names, {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(3), strict=True)})
    works = [Work((index + 1,)) for index in range(3)]
    steward = Steward(PLACE, cast(Membership, members), cast(Stewardship, works[2]), None)
    yield Cluster(works, members, steward, nursery)
    nursery.cancel_scope.cancel()


async def test_the_first_of_the_order_answers_for_all(cluster: Cluster) -> None:
    await cluster.start(0)
    await cluster.start(1)
    assert await cluster.steward.in_bucket(ZERO) == InBucket((1,))
    assert await cluster.steward.in_bucket(ZERO, "2026-01-31_08-30") == InBucket((1,), 7, "2026-01-31_08-30")
    assert [work.asked for work in cluster.works] == [2, 0, 0]


async def test_one_that_does_not_answer_is_passed_over_and_at_last_the_node_looks_itself(cluster: Cluster) -> None:
    assert await cluster.steward.in_bucket(ZERO) == InBucket((3,))
    await cluster.start(1)
    assert await cluster.steward.in_bucket(ZERO) == InBucket((2,))


async def test_one_that_hangs_holds_a_mount_up_for_no_longer_than_the_deadline(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "STEWARD", 0.5)
    cluster.works[0].hangs = True
    await cluster.start(0)
    await cluster.start(1)
    with trio.fail_after(20):
        assert await cluster.steward.in_bucket(ZERO) == InBucket((2,))


@pytest.mark.parametrize("error", [TierUnavailable("503 for an hour"), TierRefused("lacks storage.objects.list")])
async def test_a_bucket_that_does_not_answer_the_steward_is_not_asked_by_everybody_else(
    cluster: Cluster, error: Exception
) -> None:
    cluster.works[0].error = error
    await cluster.start(0)
    await cluster.start(1)
    with pytest.raises(type(error), match=str(error)):
        await cluster.steward.in_bucket(ZERO)
    assert [work.asked for work in cluster.works] == [1, 0, 0]


async def test_a_version_that_is_not_there_is_told_as_it_is(cluster: Cluster) -> None:
    cluster.works[0].error = NotFound("no checkpoint 2020-01-01_00-00")
    await cluster.start(0)
    with pytest.raises(NotFound, match="2020-01-01_00-00"):
        await cluster.steward.in_bucket(ZERO, "2020-01-01_00-00")


async def test_a_node_with_another_bucket_is_passed_over(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("control.request_refused")
    await cluster.start(0, place="gs://another")
    await cluster.start(1)
    assert await cluster.steward.in_bucket(ZERO) == InBucket((2,))


async def test_news_and_turns_come_to_the_steward_and_to_the_node_itself_when_it_is_alone(cluster: Cluster) -> None:
    await cluster.steward.backed_up(ZERO)
    assert cluster.works[2].noted == [Job.of(ZERO)]
    assert (await cluster.steward.turn(ZERO, "llama", 100, 60.0)).step == 100
    await cluster.start(0)
    await cluster.steward.backed_up(ZERO)
    assert cluster.works[0].noted == [Job.of(ZERO)]
    assert (await cluster.steward.turn(ZERO, "llama", 200, 60.0)).step == 200
    assert (await cluster.steward.turn(ZERO, "llama", 190, 60.0)) == Turn(None, 60.0)


def test_replicas_that_are_mounted_on_any_live_node_are_known() -> None:
    own = Member("a", "1", "", "", alive=True, mounted=frozenset({ZERO}))
    others = (
        Member("b", "1", "", "", alive=True, mounted=frozenset({Identity.parse("default/llama/1")})),
        Member("c", "1", "", "", alive=False, mounted=frozenset({Identity.parse("default/llama/2")})),
        Member("d", "1", "", "", alive=True, mounted=frozenset({Identity.parse("default/gemma/3")})),
    )
    assert mounted_replicas(Job("default", "llama"), own, others) == {"0", "1"}


BLOBS = [Blob(bytes([number]) * 16, number) for number in range(64)]


async def test_the_first_that_asks_reads_the_bucket_and_the_others_take_it_from_there(cluster: Cluster) -> None:
    for index in range(3):
        await cluster.start(index)
    first, second, third = cluster.members.names
    assert await cluster.readers(second).refer(BLOBS[:40]) == {}
    assert await cluster.readers(first).refer(BLOBS) == dict.fromkeys(BLOBS[:40], second)
    assert await cluster.readers(third).refer(BLOBS) == dict.fromkeys(BLOBS[:40], second) | dict.fromkeys(
        BLOBS[40:], first
    )
    kept = {name: len(sharing._trees) for name, sharing in cluster.lists.items()}
    assert sum(kept.values()) == len(BLOBS)
    assert len([count for count in kept.values() if count]) >= 2, kept


async def test_who_comes_back_and_who_cannot_ask_reads_for_itself(cluster: Cluster) -> None:
    first, second, _ = cluster.members.names
    await cluster.start(0)
    await cluster.start(1)
    await cluster.readers(second).refer(BLOBS)
    referred = await cluster.readers(first).refer(BLOBS)
    assert 0 < len(referred) < len(BLOBS)  # the third node, which is not there, keeps some of the lists
    assert await cluster.readers(first).refer(BLOBS) == {}


async def test_a_node_of_another_bucket_is_told_nothing(cluster: Cluster, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow(r"control\.request_refused")
    first, second, third = cluster.members.names
    for index in range(3):
        await cluster.start(index, place="gs://another")
    await cluster.readers(second).refer(BLOBS)
    own = {blob for blob in BLOBS if blob in cluster.lists[second]._trees}
    assert (await cluster.readers(first).refer(BLOBS)).keys() <= set(BLOBS) - own
    assert await cluster.readers(third).refer(sorted(own)) == {}
