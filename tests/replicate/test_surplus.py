"""Copies where they do not belong any more are given up, and not counted from then on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.errors import TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.replicate.lost import Lost
from fuse_tier.replicate.surplus import LOOK_EVERY_SECONDS, Surplus
from fuse_tier.tiers.base import TierName
from tests.replicate.cluster import MemoryPeer, Neighbourhood
from tests.replicate.conftest import Bench


class SpeechlessPeer(MemoryPeer):
    """A peer that does what it is told, and never says so."""

    async def drop(self, snapshot: SnapshotId) -> None:
        await super().drop(snapshot)
        raise TierUnavailable("no answer within 5 s")


@pytest.mark.parametrize("kind", [MemoryPeer, SpeechlessPeer])
async def test_a_copy_that_was_dropped_is_not_counted_whether_that_was_answered_or_not(
    kind: type[MemoryPeer], bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around, volume = Neighbourhood(bench, "bc", 1), bench.volume
    around.peers |= {name: kind() for name in "bc"}
    await around.membership.claim(volume.identity)
    saved = await bench.snapshot()
    volume.copies.follow(saved)
    for name, peer in around.peers.items():
        await peer.store(saved.blobs, bench.ram)
        await peer.commit(saved)
        volume.copies.stored(TierName.PEER, name, saved.id.number)
    (belongs,) = await around.fanout.targets(volume, ())
    nursery.start_soon(Surplus(around.fanout).keep_down, volume)
    await trio.sleep(3 * LOOK_EVERY_SECONDS)
    assert await around.holders(saved.id.number) == {belongs}
    assert volume.copies.held(TierName.PEER).keys() == {belongs}


async def test_a_copy_where_it_does_not_belong_stays_while_it_may_have_what_was_lost(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    around, volume = Neighbourhood(bench, "bc", 1), bench.volume
    await around.membership.claim(volume.identity)
    saved = await bench.snapshot()
    volume.copies.follow(saved)
    (belongs,) = await around.fanout.targets(volume, ())
    (other,) = {"b", "c"} - {belongs}
    for name, peer in around.peers.items():
        await peer.store(saved.blobs, bench.ram)
        await peer.commit(saved)
        volume.copies.stored(TierName.PEER, name, saved.id.number)
    volume.lost = Lost([around.members[belongs]])
    nursery.start_soon(Surplus(around.fanout).keep_down, volume)
    await trio.sleep(3 * LOOK_EVERY_SECONDS)
    assert await around.holders(saved.id.number) == {"b", "c"}
    volume.lost.end(around.members[other])
    await trio.sleep(3 * LOOK_EVERY_SECONDS)
    assert await around.holders(saved.id.number) == {belongs}
