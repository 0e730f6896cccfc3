"""In which order snapshots are copied, when more are due than may be under way; and how soon after a failure."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_tier.blobs import Blob, Progress, Source
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.copying import Copier, Troubles
from fuse_tier.tiers.base import TierName, no_progress
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.snapshots import check_producible, keep, manifest_of
from tests.replicate.conftest import Bench
from tests.wire.peers import running_peer


class HeldUp(MemoryTier):
    """A peer that is done with one copy whenever it is told so, and knows in which order it was offered them."""

    def __init__(self) -> None:
        super().__init__(TierName.PEER)
        self.done = trio.Semaphore(0)
        self.offered: list[Blob] = []

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        self.offered += blobs
        await self.done.acquire()

    async def commit(self, manifest: Manifest) -> None:
        await trio.lowlevel.checkpoint()


async def test_when_turns_are_short_the_volumes_with_the_fewest_copies_come_first(bench: Bench) -> None:
    copier = Copier(bench.ram)
    copies = {"first": (2, 1), "second": (2, 1), "two copies": (2, 1), "one copy": (1, 1), "none": (0, 1)}
    assert await _order(copier, copies) == ["first", "second", "none", "one copy", "two copies"]


async def test_slow_places_do_not_have_all_turns_for_ever(bench: Bench, autojump_clock: MockClock) -> None:
    copier, quick = Copier(bench.ram), HeldUp()
    quick.done.release()
    async with trio.open_nursery() as nursery:
        for number, place in enumerate(("slow", "slow", "slow too", "slow too", "quick")):
            manifest, peer = manifest_of({"weights": str(number).encode()}), quick if place == "quick" else HeldUp()
            nursery.start_soon(copier.copy, manifest, peer, place, Troubles(), 0)
            await wait_all_tasks_blocked()
        assert not quick.offered
        await trio.sleep(11)
        assert quick.offered and not quick.done.value
        nursery.cancel_scope.cancel()


async def test_of_a_node_that_drains_what_was_complete_before_goes_first_and_of_that_the_newest(bench: Bench) -> None:
    copier = Copier(bench.ram)
    copier.drains_since_ns = 100
    copies = {
        "first": (2, 1),
        "second": (2, 1),
        "saved meanwhile": (0, 102),
        "saved meanwhile, later": (0, 103),
        "old": (0, 10),
        "new": (0, 99),
        "newer, with a copy": (1, 100),
    }
    expected = ["new", "old", "saved meanwhile, later", "saved meanwhile", "newer, with a copy"]
    assert await _order(copier, copies) == ["first", "second", *expected]


async def _order(copier: Copier, copies: dict[str, tuple[int, int]]) -> list[str]:
    """In which order snapshots are sent that are all due: each has so many copies, and was taken at that moment."""
    peer = HeldUp()
    async with trio.open_nursery() as nursery:
        for name, (count, created_ns) in copies.items():
            manifest = replace(manifest_of({"weights": name.encode()}), created_ns=created_ns)
            nursery.start_soon(copier.copy, manifest, peer, "b", Troubles(), count)
            await wait_all_tasks_blocked()
        for _ in copies:
            peer.done.release()
            await wait_all_tasks_blocked()
    names = {hash_bytes(name.encode()): name for name in copies}
    return [names[blob] for blob in peer.offered]


async def test_a_peer_that_comes_back_or_is_another_is_tried_at_once_and_one_that_stayed_after_a_pause(
    autojump_clock: MockClock,
) -> None:
    troubles = Troubles()
    troubles.look_at({"stayed": "1", "gone": "1", "started again": "1"})
    for place in ("stayed", "gone", "started again"):
        troubles.failed(place, "it is away")
    troubles.look_at({"stayed": "1", "started again": "2"})
    assert troubles.refusing() == {"stayed", "gone"}
    troubles.look_at({"stayed": "1", "started again": "2", "gone": "1"})
    assert troubles.refusing() == {"stayed"}
    await trio.sleep_until(troubles.next_try())
    assert not troubles.refusing()


@pytest.mark.network
async def test_content_that_ranks_share_is_sent_once_and_how_much_that_saves_is_known(
    bench: Bench, memory_path: Path
) -> None:
    copier, shared = Copier(bench.ram), b"parameters" * 10_000
    async with running_peer(memory_path) as peer, aclosing(peer.tier()) as tier:
        for rank in ("0", "1", "2", "3"):
            files = {"parameters": shared, "optimizer": rank.encode() * 100_000}
            manifest = await keep(bench.ram, files, identity=Identity("default", "job", rank))
            assert await copier.copy(manifest, tier, "b", Troubles(), 0)
        await check_producible(tier)
    sent, savings = copier.meters[TierName.PEER].total, copier.savings[TierName.PEER]
    assert (sent, savings.named_bytes) == (500_000, 800_000)
    assert savings.factor(sent) == 1.6
