"""What a node holds for nodes that are gone: one of its holders sees that there are as many copies as configured."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.orphans import Orphans
from tests.harness.snapshots import holding, keep, manifest_of
from tests.harness.waiting import until
from tests.replicate.cluster import HangingPeer, Neighbourhood
from tests.replicate.conftest import Bench

ORPHAN = Identity("default", "job", "0")
REPLICAS = 2


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
    await orphans.look()
    await orphans.look()
    assert await _lists(around, "b", held) != await _lists(around, "c", held)


async def test_what_somebody_has_mounted_is_that_nodes_to_keep(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    held = await _hold(bench)
    around.change("c", mounted=frozenset({ORPHAN}))
    await orphans.look()
    assert not await _lists(around, "b", held)
    assert not await _lists(around, "c", held)


async def test_what_is_older_than_what_another_holds_is_left_alone(
    around: Neighbourhood, bench: Bench, orphans: Orphans
) -> None:
    held = await _hold(bench)
    await keep(around.peers["b"], {"weights": b"4567"}, 2, ORPHAN)
    await orphans.look()
    assert not await _lists(around, "c", held)


async def test_a_peer_that_takes_for_ever_holds_up_no_other_volume(
    around: Neighbourhood, bench: Bench, orphans: Orphans, nursery: trio.Nursery
) -> None:
    hangs = await _target(around, ORPHAN)
    other = ORPHAN
    while await _target(around, other) == hangs:
        other = Identity("default", "job", f"{other.replica}1")
    around.peers[hangs] = HangingPeer()
    await _hold(bench)
    held = await _hold(bench, other)
    nursery.start_soon(orphans.look)
    (lives,) = {"b", "c"} - {hangs}
    await until(partial(_lists, around, lives, held))
