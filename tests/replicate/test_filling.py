"""In which order the content of a restored tree comes, and that what is opened meanwhile is not sent twice."""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.filling import Filling, as_wanted
from fuse_tier.replicate.restore import Restorer
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.tiers.memory import MemoryTier
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench
from tests.replicate.test_restore import Node, save
from tests.replicate.test_restore import bucket as bucket
from tests.replicate.test_restore import node as node

WAITING = {Blob(bytes([inode] * 16), 1): [inode] for inode in range(10, 20)}


def wanted_after(*opened: int) -> list[int]:
    return [WAITING[blob][0] for blob in as_wanted(WAITING, WAITING, opened)]


def test_who_goes_on_upwards_gets_what_follows_and_then_what_was_left_behind() -> None:
    assert wanted_after(13, 15) == [15, 16, 17, 18, 19, 14, 13, 12, 11, 10]


def test_who_opens_what_a_listing_shows_goes_backwards() -> None:
    assert wanted_after(18, 17) == [17, 16, 15, 14, 13, 12, 11, 10, 18, 19]


def test_after_one_alone_what_was_made_after_it_comes() -> None:
    assert wanted_after(18) == [18, 19, 17, 16, 15, 14, 13, 12, 11, 10]


LONG_SECONDS = 60.0  # of trio's clock, which does not wait
LARGE_BYTES = 17 << 20  # each is a part by itself


class SlowPeer(MemoryTier):
    """Stops in the middle of what it is asked for first, until it may go on. Gives nothing twice."""

    def __init__(self) -> None:
        super().__init__(TierName.PEER, "a peer")
        self.asked: list[Blob] = []
        self.stops = 1  # of so many questions
        self.is_at_it = trio.Event()
        self.may_go_on = trio.Event()
        self.has_given = trio.Event()  # something at which it did not stop

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        self.stops -= 1
        for blob in blobs:
            assert blob not in self.asked, "it is sent twice"
            self.asked.append(blob)
        if self.stops < 0:
            given = await super().fetch(blobs, sink, progress)
            self.has_given.set()
            return given
        (blob,) = blobs
        incoming, content = sink.create(blob), self.blobs.contents[blob]
        os.pwrite(incoming.fd, content[: blob.size // 2], 0)
        if not self.stops:
            self.is_at_it.set()
        await self.may_go_on.wait()
        os.pwrite(incoming.fd, content[blob.size // 2 :], blob.size // 2)
        incoming.accept()
        return Fetched(frozenset(blobs), {})


class Restoring:
    """A volume that is mounted, and whose content is to come from a slow peer."""

    def __init__(self, node: Node, peer: SlowPeer) -> None:
        self.peer = peer
        self.ram, self.volume, self.tree = node.ram, node.volume, node.tree
        self._restorer = Restorer(node.layout, node.places, "c", trio.CapacityLimiter(2), at_once_bytes=0)
        self._filling = Filling(node.layout, node.ram, self._restorer, _there_is_room, _there_is_room)

    async def begin(self, bench: Bench, files: dict[str, bytes]) -> None:
        saved = await save(bench, self.peer, files)
        await self._restorer.into_volume(self.volume, Chosen(saved, (self.peer,)), LINEAGE)

    async def open(self, name: str) -> bytes:
        await self._filling.materialize(self.volume, (self.tree / name).stat().st_ino)
        return (self.tree / name).read_bytes()

    async def bring_all(self) -> None:
        """The background, until all is here."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._filling.keep_filled, self.volume)
            while self.volume.coming is not None:
                await self.volume.news.wait_beyond(self.volume.news.version)
            nursery.cancel_scope.cancel()


async def _there_is_room(size: int) -> int:
    await trio.lowlevel.checkpoint()
    return size


@pytest.fixture
def restoring(node: Node) -> Restoring:
    return Restoring(node, SlowPeer())


async def test_what_is_opened_while_it_comes_is_waited_for(
    bench: Bench, restoring: Restoring, autojump_clock: MockClock
) -> None:
    content = b"model" * 10_000
    await restoring.begin(bench, {"model": content})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.bring_all)
        await restoring.peer.is_at_it.wait()
        opened: list[bytes] = []

        async def open_it() -> None:
            opened.append(await restoring.open("model"))

        nursery.start_soon(open_it)
        await trio.sleep(LONG_SECONDS)
        assert not opened
        restoring.peer.may_go_on.set()
    assert opened == [content]


async def test_what_was_opened_first_the_background_leaves_out_and_waits_for(
    bench: Bench, restoring: Restoring, autojump_clock: MockClock
) -> None:
    files = {"opened": b"opened" * 10_000, "other": b"other" * 10_000}
    await restoring.begin(bench, files)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.open, "opened")
        await restoring.peer.is_at_it.wait()
        nursery.start_soon(restoring.bring_all)
        await restoring.peer.has_given.wait()
        restoring.peer.may_go_on.set()
    assert {path.name: path.read_bytes() for path in restoring.tree.iterdir()} == files
    assert [snapshot.number for snapshot in await restoring.ram.snapshots(IDENTITY)] == [1]


async def test_what_was_opened_before_the_background_came_to_it_is_not_asked_for_again(
    bench: Bench, restoring: Restoring, autojump_clock: MockClock
) -> None:
    files = {f"rank_{number}": bytes([number]) * LARGE_BYTES for number in range(5)}
    await restoring.begin(bench, files)
    restoring.peer.stops = 2  # as many as one peer is asked at once
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.bring_all)
        await restoring.peer.is_at_it.wait()
        last = max(files, key=lambda name: (restoring.tree / name).stat().st_ino)
        assert await restoring.open(last) == files[last]
        restoring.peer.may_go_on.set()
    assert {path.name: path.read_bytes() for path in restoring.tree.iterdir()} == files
