"""Whether a mounted volume is still its node's, and under which epoch it goes on."""

from __future__ import annotations

import pytest
import trio

from fuse_tier.epochs import epoch_of, number_before
from fuse_tier.errors import TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.replicate.settling import keep_snapshots
from fuse_tier.tiers.base import TierName
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import IDENTITY, Bench


@pytest.fixture
async def around(bench: Bench) -> Neighbourhood:
    around = Neighbourhood(bench, "bc", 1)
    await around.membership.claim(IDENTITY, above=4)
    bench.volume.mountpoint = "/mnt"
    await bench.volume.renew(around.membership.epoch(IDENTITY))
    (bench.tree / "a").write_bytes(b"a")
    await bench.volume.take_snapshot()
    return around


async def test_who_has_been_given_another_epoch_saves_anew_under_that(
    around: Neighbourhood, bench: Bench, nursery: trio.Nursery
) -> None:
    nursery.start_soon(keep_snapshots, bench.volume)
    nursery.start_soon(around.ownership.keep, bench.volume)
    around.membership.grant(IDENTITY, 9)
    bench.volume.news.announce()
    with trio.fail_after(10):
        await bench.volume.wait_until_on(TierName.RAM, number_before(9) + 1, 1)


async def test_what_is_doubtful_is_not_kept_before_somebody_can_tell(
    around: Neighbourhood, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_can_tell(identity: Identity, above: int = 0) -> bool:
        await trio.lowlevel.checkpoint()
        raise TierUnavailable("the coordinator has just started")

    around.membership.doubtful.add(IDENTITY)
    with monkeypatch.context() as patched:
        patched.setattr(around.membership, "confirm", nobody_can_tell)
        assert not await around.ownership.is_ours(bench.volume)
    assert await around.ownership.is_ours(bench.volume)
    assert around.superseded == []


async def test_what_is_doubtful_and_another_nodes_is_superseded(around: Neighbourhood, bench: Bench) -> None:
    around.membership.doubtful.add(IDENTITY)
    around.membership.successors[IDENTITY] = "b"
    assert not await around.ownership.is_ours(bench.volume)
    assert around.superseded == ["another node"]


async def test_who_meets_a_number_of_a_later_epoch_asks_for_one_above_it(around: Neighbourhood, bench: Bench) -> None:
    bench.volume.exists_elsewhere(number_before(12) + 1)
    bench.volume.tenure.numbering.is_exhausted = True
    assert await around.ownership.is_ours(bench.volume)
    taken = await bench.volume.take_snapshot()
    assert taken is not None
    assert epoch_of(taken.id.number) == 13
