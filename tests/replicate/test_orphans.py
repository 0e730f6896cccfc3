"""What a node holds for nodes that are gone: one of its holders sees that there are as many copies as configured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest
import trio

from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.orphans import Orphans
from fuse_tier.replicate.records import InBucket
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.snapshots import holding, keep, manifest_of
from tests.harness.waiting import until
from tests.replicate.cluster import HangingPeer, Neighbourhood
from tests.replicate.conftest import IDENTITY, Bench

ORPHAN = Identity("default", "job", "0")
REPLICAS = 2


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_tier.replicate.orphans._LOOK_SOON_SECONDS", 0.02)


@pytest.fixture
async def around(bench: Bench) -> Neighbourhood:
    """Node ``x``, which owned volumes, is gone; node ``a``, which is this one, holds copies for it."""
    around = Neighbourhood(bench, "bcx", REPLICAS)
    around.change("x", alive=False)
    return around


@pytest.fixture
def orphans(around: Neighbourhood, bench: Bench) -> Orphans:
    return Orphans(around.places, around.copier, around.targets, lambda identity: None, REPLICAS)


async def _hold(bench: Bench, identity: Identity = ORPHAN) -> Manifest:
    """A copy of what ``x`` has saved."""
    manifest = manifest_of({"weights": b"0123"}, identity=identity, node="x")
    await bench.ram.store(manifest.blobs, holding([b"0123"]))
    await bench.ram.commit(manifest)
    return manifest


async def _look(orphans: Orphans) -> None:
    """One round, and all that comes of it."""
    async with trio.open_nursery() as nursery:
        await orphans.look(nursery)


async def _target(around: Neighbourhood, identity: Identity) -> str:
    """Where a copy belongs that is missing here."""
    chosen = await around.targets.of(identity, around.members["x"])
    return next(name for name in chosen if name != "a")


async def _lists(around: Neighbourhood, name: str, manifest: Manifest) -> bool:
    return manifest.id in await around.peers[name].snapshots(manifest.id.identity)


async def test_what_a_node_that_is_gone_has_left_is_copied_until_there_is_enough(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    held = await _hold(bench)
    await _look(orphans)
    await _look(orphans)
    assert await _lists(around, "b", held) != await _lists(around, "c", held)


async def test_what_somebody_has_mounted_is_that_nodes_to_keep(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    held = await _hold(bench)
    around.change("c", mounted=frozenset({ORPHAN}))
    await _look(orphans)
    assert not await _lists(around, "b", held)
    assert not await _lists(around, "c", held)


async def test_a_tree_that_was_left_here_before_keeps_no_copies_of_what_was_saved_elsewhere_since(
    around: Neighbourhood, bench: Bench
) -> None:
    (bench.tree / "weights").write_bytes(b"before")
    before = await bench.volume.take_snapshot()
    assert before is not None
    orphans = Orphans(around.places, around.copier, around.targets, lambda identity: bench.volume, REPLICAS)
    await _look(orphans)
    assert not await around.holders(before.id.number), "that is its own node's to keep (fanout.py)"
    since = replace(before, id=SnapshotId(IDENTITY, before.id.number + 1), node="x")
    await bench.ram.commit(since)
    await _look(orphans)
    assert len(await around.holders(since.id.number)) == 1


async def test_what_is_older_than_what_another_holds_is_left_alone(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    held = await _hold(bench)
    await keep(around.peers["b"], {"weights": b"4567"}, 2, ORPHAN)
    await _look(orphans)
    assert not await _lists(around, "c", held)


async def test_a_peer_that_takes_for_ever_holds_up_no_other_volume_and_no_later_round(
    around: Neighbourhood, bench: Bench, orphans: Orphans, nursery: trio.Nursery
) -> None:
    hangs = await _target(around, ORPHAN)
    (lives,) = {"b", "c"} - {hangs}
    others: list[Identity] = []
    for number in range(1, 100):
        other = Identity("default", "job", str(number))
        if await _target(around, other) == lives:
            others.append(other)
    hanging = around.peers[hangs] = HangingPeer()
    await _hold(bench)
    held = await _hold(bench, others[0])
    await orphans.look(nursery)
    await until(partial(_lists, around, lives, held))
    later = await _hold(bench, others[1])
    await orphans.look(nursery)
    await until(partial(_lists, around, lives, later))
    assert hanging.asked == 1, "what is under way is not begun again"


async def test_a_copy_to_a_peer_that_is_gone_is_given_up_at_once_and_begun_elsewhere(
    around: Neighbourhood, bench: Bench, orphans: Orphans, nursery: trio.Nursery
) -> None:
    hangs = await _target(around, ORPHAN)
    (lives,) = {"b", "c"} - {hangs}
    hanging = around.peers[hangs] = HangingPeer()
    held = await _hold(bench)
    await orphans.look(nursery)
    await until(partial(_is_asked, hanging))
    around.change(hangs, alive=False)
    await orphans.look(nursery)  # gives it up
    await until(partial(_is_kept_after_a_look, around, orphans, nursery, lives, held))


async def test_a_copy_of_what_somebody_has_mounted_meanwhile_is_given_up_at_once(
    around: Neighbourhood, bench: Bench
) -> None:
    orphans = Orphans(around.places, around.copier, around.targets, lambda identity: None, replicas=3)
    hanging = {name: HangingPeer() for name in "bc"}
    around.peers.update(hanging)
    await _hold(bench)
    async with trio.open_nursery() as nursery:
        await orphans.look(nursery)
        await until(partial(_is_any_asked, hanging.values()))
        around.change("c", mounted=frozenset({ORPHAN}))
        with trio.fail_after(30):
            await orphans.look(nursery)
            while nursery.child_tasks:  # noqa: ASYNC110 - nobody announces it
                await trio.sleep(0.01)
    assert sum(peer.asked for peer in hanging.values()) == 1, "no other copy is begun"


def _with_bucket(around: Neighbourhood) -> MemoryTier:
    bucket = around.places.bucket = MemoryTier(TierName.BUCKET, "gs://bucket")

    async def ask(identity: Identity, version: str) -> InBucket:
        return InBucket(tuple(snapshot.number for snapshot in await bucket.snapshots(identity)))

    around.places.ask_bucket = ask
    return bucket


async def _is_any_asked(peers: Iterable[HangingPeer]) -> bool:
    return any([await _is_asked(peer) for peer in peers])


async def _is_asked(peer: HangingPeer) -> bool:
    return peer.asked > 0


async def _is_kept_after_a_look(
    around: Neighbourhood, orphans: Orphans, nursery: trio.Nursery, name: str, held: Manifest
) -> bool:
    await orphans.look(nursery)
    return await _lists(around, name, held)


async def test_what_only_nodes_have_that_leave_goes_to_one_that_stays(around: Neighbourhood, bench: Bench) -> None:
    """Also where one copy is all that is configured, and a second node that leaves has the other."""
    orphans = Orphans(around.places, around.copier, around.targets, lambda identity: None, replicas=1)
    held = await _hold(bench)
    await around.peers["b"].store(held.blobs, bench.ram)
    await around.peers["b"].commit(held)
    around.leave("b")
    around.leave()
    await orphans.drain(60)
    assert await _lists(around, "c", held)


async def test_a_copy_on_a_node_that_leaves_does_not_count(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    held = await _hold(bench)
    await around.peers["b"].store(held.blobs, bench.ram)
    await around.peers["b"].commit(held)
    await _look(orphans)
    assert not await _lists(around, "c", held), "there are two"
    around.leave("b")
    await _look(orphans)
    assert await _lists(around, "c", held)


@pytest.mark.parametrize("stays", [True, False])
async def test_where_peers_have_no_room_or_go_as_well_a_drain_brings_it_to_the_bucket(
    stays: bool, around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    bucket = _with_bucket(around)
    for name in "bc":
        around.peers[name].blobs.capacity = 0
        if not stays:
            around.leave(name)
    held = await _hold(bench)
    around.leave()
    with trio.fail_after(60):
        await orphans.drain(3600)
    assert held.id in await bucket.snapshots()


async def test_a_drain_does_not_wait_for_what_the_bucket_has(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    bucket = _with_bucket(around)
    around.peers["b"], around.peers["c"] = HangingPeer(), HangingPeer()
    held = await _hold(bench)
    await keep(bucket, {"weights": b"4567"}, held.id.number, ORPHAN)
    around.leave()
    with trio.fail_after(60):
        await orphans.drain(3600)


async def test_a_bucket_that_does_not_answer_holds_up_no_drain(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    _with_bucket(around)

    async def ask(identity: Identity, version: str) -> InBucket:
        return await trio.sleep_forever()

    around.places.ask_bucket = ask
    held = await _hold(bench)
    around.leave()
    with trio.fail_after(60):
        await orphans.drain(3600)
    assert await _lists(around, "b", held) != await _lists(around, "c", held)


async def test_a_drain_ends_where_no_node_stays(around: Neighbourhood, bench: Bench, orphans: Orphans) -> None:
    await _hold(bench)
    around.leave("b")
    around.leave("c")
    around.leave()
    with trio.fail_after(60):
        await orphans.drain(3600)
