"""Who is asked for content while those who have it come and go."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.errors import TierUnavailable
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.tiers.base import Fetched, no_progress
from tests.harness.snapshots import keep
from tests.replicate.cluster import MemoryPeer, Neighbourhood
from tests.replicate.conftest import IDENTITY, Bench


class Connected(MemoryPeer):
    """A connection to a peer, which gives nothing any more once it was closed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.place = f"peer {name}"
        self._is_closed = False

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        if self._is_closed:
            raise TierUnavailable(f"the connection to {self.place} was closed here")
        return await super().fetch(blobs, sink, progress)

    async def aclose(self) -> None:
        await super().aclose()
        self._is_closed = True


@pytest.fixture
def around(bench: Bench) -> Neighbourhood:
    neighbourhood = Neighbourhood(bench, "bd", 1)
    neighbourhood.peers.update({name: Connected(name) for name in "bd"})
    return neighbourhood


def start_again(around: Neighbourhood, name: str) -> None:
    """A peer's worker is another one, with the RAM of the one before."""
    before, around.peers[name] = around.peers[name], Connected(name)
    around.peers[name].blobs, around.peers[name].texts = before.blobs, before.texts
    around.come_back(name)


@pytest.mark.parametrize("is_back", [True, False], ids=["back", "away again"])
async def test_a_holder_that_was_started_again_with_its_ram_is_asked_over_the_connection_of_now(
    is_back: bool, bench: Bench, around: Neighbourhood
) -> None:
    fetcher = Fetcher(around.places, "a")
    saved = await keep(around.peers["b"], {"weights": b"0123", "optimizer": b"4567"}, identity=IDENTITY)
    chosen = Chosen(saved, (around.places.peer(around.members["b"]),))
    start_again(around, "b")
    around.places.peer(around.members["b"])
    await around.places.holdings(IDENTITY)  # somebody looks: connections to what is gone are closed
    around.change("b", alive=is_back)
    sources, failed = await fetcher.fetch("all", saved.blobs, bench.ram, chosen)
    assert failed == {}
    assert sources == {"peer b": 8}
