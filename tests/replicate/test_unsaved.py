"""What only nodes have that leave: by the word of the others, not by what is heard of them."""

from __future__ import annotations

import pytest
import trio

from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.orphans import Orphans
from tests.harness.snapshots import keep
from tests.replicate.cluster import MemoryPeer, Neighbourhood, SilentPeer
from tests.replicate.conftest import Bench

VOLUME = Identity("default", "job", "0")
FILES = {"weights": b"0123"}


class Leaving:
    """Node ``a``, which is this one, leaves, and has a copy; ``b``, ``c`` and ``d`` are heard of, and stay."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.around = Neighbourhood(bench, "bcd", 1)
        self.orphans = Orphans(self.around.places, self.around.copier, self.around.targets, lambda identity: None, 1)
        self.around.leave()

    async def has(self, name: str, peer: MemoryPeer, number: int) -> None:
        """A node has a snapshot, or had."""
        await keep(peer, FILES, number, VOLUME)
        self.around.peers[name] = peer

    async def drain(self) -> set[str]:
        """Gives who has got what this node has."""
        held: Manifest = await keep(self.bench.ram, FILES, 1, VOLUME)
        before = {name for name, peer in self.around.peers.items() if held.id in peer.texts}
        with trio.fail_after(60):
            await self.orphans.drain(3600)
        return {name for name, peer in self.around.peers.items() if held.id in peer.texts} - before


@pytest.fixture
async def leaving(bench: Bench) -> Leaving:
    return Leaving(bench)


async def test_what_its_owner_has_stays_where_it_is(leaving: Leaving) -> None:
    leaving.around.change("c", mounted=frozenset({VOLUME}))
    await leaving.has("c", MemoryPeer(), 1)
    assert await leaving.drain() == set()


async def test_an_owner_that_does_not_answer_has_nothing(leaving: Leaving) -> None:
    leaving.around.change("c", mounted=frozenset({VOLUME}))
    await leaving.has("c", SilentPeer(), 1)
    assert len(await leaving.drain()) == 1


async def test_an_owner_that_is_still_restoring_has_nothing_yet(leaving: Leaving) -> None:
    leaving.around.change("c", mounted=frozenset({VOLUME}))
    assert len(await leaving.drain() - {"c"}) == 1


async def test_another_holder_that_does_not_answer_has_nothing_either(leaving: Leaving) -> None:
    await leaving.has("c", SilentPeer(), 1)
    assert len(await leaving.drain()) == 1


async def test_where_somebody_has_a_newer_one_this_is_no_matter_any_more(leaving: Leaving) -> None:
    await leaving.has("d", MemoryPeer(), 2)
    assert await leaving.drain() == set()
