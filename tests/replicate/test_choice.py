"""Which snapshot is restored while a node is away that has a newer one than all others, or may have one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.checkpoints import Saved, step_of
from fuse_tier.completeness import last_with
from fuse_tier.deadlines import Deadline
from fuse_tier.entries import Entry, Kind
from fuse_tier.epochs import number_before
from fuse_tier.errors import NotFound, TierUnavailable
from fuse_tier.manifest import Manifest
from fuse_tier.members import Member
from fuse_tier.replicate.choice import Chooser
from fuse_tier.replicate.places import Places
from tests.harness.logs import ExpectedLogs
from tests.replicate.cluster import MemoryPeer, Neighbourhood
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench
from tests.replicate.members import NOTHING, Cluster, until
from tests.replicate.test_succession import taken_by


@pytest.fixture
async def around(bench: Bench) -> Neighbourhood:
    """``b`` lists an older snapshot, and ``c``, which is away, a newer one."""
    around = Neighbourhood(bench, "bc", 1)
    await around.peers["b"].commit(taken_by("a", 1))
    await around.peers["c"].commit(taken_by("a", 2))
    around.change("c", alive=False)
    return around


async def chosen(around: Neighbourhood) -> int:
    manifest = (await Chooser(around.places).choose(IDENTITY, LINEAGE)).manifest
    assert manifest is not None
    return manifest.id.number


async def test_a_node_with_a_newer_copy_that_is_away_for_a_moment_is_waited_for(
    around: Neighbourhood, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def come_back() -> None:
        await trio.sleep(Deadline.RETURN / 2)
        around.come_back("c")

    nursery.start_soon(come_back)
    assert await chosen(around) == 2


async def test_a_node_that_does_not_come_back_is_not_waited_for_ever(
    around: Neighbourhood, autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.newest_gone")
    assert await chosen(around) == 1
    assert trio.current_time() < 2 * Deadline.RETURN


async def test_nobody_waits_for_what_an_owner_that_is_gone_had_alone(
    around: Neighbourhood, autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.newest_gone")
    around.change("c", mounted=frozenset({IDENTITY}))
    begun = trio.current_time()
    assert await chosen(around) == 1
    assert trio.current_time() == begun


async def test_an_owner_is_waited_for_that_has_what_was_copied_and_is_nowhere_else_now(
    around: Neighbourhood, autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.newest_gone")
    around.change("c", mounted=frozenset({IDENTITY}))
    around.membership.copied = 2
    begun = trio.current_time()
    assert await chosen(around) == 1
    assert trio.current_time() > begun + Deadline.RETURN


async def test_an_owner_is_waited_for_rather_than_that_the_volume_begins_empty(
    around: Neighbourhood, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around.peers["b"].texts.clear()
    around.change("c", mounted=frozenset({IDENTITY}))

    async def come_back() -> None:
        await trio.sleep(Deadline.RETURN / 2)
        around.come_back("c")

    nursery.start_soon(come_back)
    assert await chosen(around) == 2


async def test_a_volume_that_goes_on_without_what_only_a_dead_node_had_says_so(
    around: Neighbourhood, autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    around.peers["b"].texts.clear()
    assert (await Chooser(around.places).choose(IDENTITY, LINEAGE)).manifest is None
    (line,) = expected_logs.unannounced()
    assert line.event == "restore.newest_gone"
    assert "node c (snapshot 2)" in line.text
    expected_logs.allow("restore.newest_gone")


async def test_nothing_older_is_taken_while_nobody_knows_what_a_silent_node_has(
    around: Neighbourhood, autojump_clock: MockClock
) -> None:
    around.membership.silent = ("node d",)
    for lineage in (LINEAGE, None):
        with pytest.raises(TierUnavailable, match="node d could not be asked and may have a newer one"):
            await Chooser(around.places).choose(IDENTITY, lineage)
    named = await Chooser(around.places).choose(IDENTITY, LINEAGE, 1)
    assert named.manifest is not None


async def test_a_silent_node_that_answers_after_a_moment_is_heard(
    around: Neighbourhood, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around.membership.silent = ("node c",)

    async def answer() -> None:
        await trio.sleep(Deadline.RETURN / 2)
        around.come_back("c")
        around.membership.silent = ()

    nursery.start_soon(answer)
    assert await chosen(around) == 2


async def test_what_nobody_lists_who_answers_is_not_called_missing_while_others_are_silent(
    around: Neighbourhood,
) -> None:
    chooser = Chooser(around.places)
    with pytest.raises(
        TierUnavailable, match=r"no tier has snapshot 7 .* 1; node c \(snapshot 2\) could not be asked"
    ):
        await chooser.choose(IDENTITY, None, 7)
    around.peers["b"].texts.clear()
    with pytest.raises(TierUnavailable, match=r"no snapshot .* was found, but node c \(snapshot 2\) could not be"):
        await chooser.choose(IDENTITY, None)
    around.come_back("c")
    with pytest.raises(NotFound, match=r"those found are 2$"):
        await chooser.choose(IDENTITY, None, 7)


@pytest.mark.network
async def test_a_mount_finds_nothing_older_when_the_coordinator_and_a_peer_fall_silent_after_the_claim(
    bench: Bench, cluster: Cluster, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "RETURN", 1.0)
    expected_logs.allow(r"membership\..*", "coordinator.node_gone")
    await cluster.start_coordinator()
    a, b, c = [await cluster.start(name) for name in "abc"]
    await until(a.membership, lambda members: sum(member.alive for member in members) == 2)
    b.facts, c.facts = (replace(NOTHING, holdings={IDENTITY: (number,)}) for number in (1, 2))
    await a.membership.claim(IDENTITY)
    await cluster.stop_coordinator()
    await c.die()
    peer = MemoryPeer()
    await peer.commit(taken_by("b", 1))

    def connect(member: Member) -> MemoryPeer:
        return peer

    places = Places(bench.ram, a.membership, None, connect)
    with pytest.raises(
        TierUnavailable, match=r"@1 is the newest that was found, but node c .* coordinator at .* may"
    ):
        await Chooser(places).choose(IDENTITY, LINEAGE)
    b.facts = NOTHING
    with pytest.raises(TierUnavailable, match=r"no snapshot was found, but node c .* could not be asked"):
        await Chooser(places).choose(IDENTITY, LINEAGE)
    await places.aclose()


def with_steps(number: int, *steps: int) -> Manifest:
    """Of a volume with several steps, as it was named last in each of them."""
    root = taken_by("a", number)
    directories = (Entry(str(step).encode(), Kind.DIRECTORY, 0o755) for step in steps)
    return replace(root, entries=(*root.entries, *directories), older_steps=steps[:-1])


@pytest.mark.parametrize(
    ("epochs", "wanted"),
    [
        # A life that went back from the step, be it whole there, comes before the one that has it again.
        ([(1, (100, 200)), (1, (100, 200, 300)), (2, (100, 200, 300))], 2),
        ([(1, (100, 200, 300)), (2, (100, 200, 300)), (2, (100, 200, 300, 400))], 1),
        ([(1, (100, 200, 300)), (1, (100, 200)), (1, (100, 200))], 2),
        ([(1, (100, 200, 300)), (2, (100,))], 0),
    ],
)
async def test_a_step_is_taken_from_the_last_life_that_has_it_as_it_is_counted(
    bench: Bench, epochs: list[tuple[int, tuple[int, ...]]], wanted: int
) -> None:
    """``epochs`` are snapshots' owners and steps in the order in which they were taken."""
    around = Neighbourhood(bench, "b", 1)
    made = [with_steps(number_before(epoch) + at, *steps) for at, (epoch, steps) in enumerate(epochs, 1)]
    for one in made:
        await around.peers["b"].commit(one)
    found = (await Chooser(around.places).choose(IDENTITY, LINEAGE, step=200)).manifest
    assert found is not None
    assert found.id == made[wanted].id
    assert step_of(found) == 200
    assert last_with(200, [Saved.of(one) for one in made]) == Saved.of(made[wanted])
