"""Content of a restored tree that comes behind the mount: what is opened meanwhile is not sent twice."""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.errors import TierError, TierUnavailable
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.filling import Filling
from fuse_tier.replicate.restore import Restorer
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.logs import ExpectedLogs
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench
from tests.replicate.test_restore import Node, save, there_is_room
from tests.replicate.test_restore import bucket as bucket
from tests.replicate.test_restore import node as node

LONG_SECONDS = 60.0  # of trio's clock, which does not wait
LARGE_BYTES = 17 << 20  # each is a part by itself


class SlowPeer(MemoryTier):
    """Stops in the middle of what it is asked for first, until it may go on. Gives nothing twice."""

    def __init__(self) -> None:
        super().__init__(TierName.PEER, "a peer")
        self.asked: list[Blob] = []
        self.stops = 1  # of so many questions
        self.hesitates = 0.0  # seconds, before it begins with something at which it stops
        self.is_told_when = False  # to give the next one
        self.gives_twice = False
        self.breaks = False  # after it has stopped
        self.is_asked = trio.Event()
        self.is_at_it = trio.Event()
        self.may_go_on = trio.Event()
        self.has_given = trio.Event()  # something at which it did not stop
        self._tell, self._told = trio.open_memory_channel[None](0)
        self._gave, self._given = trio.open_memory_channel[None](0)

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        self.stops -= 1
        for blob in blobs:
            assert self.gives_twice or blob not in self.asked, "it is sent twice"
            self.asked.append(blob)
        self.is_asked.set()
        if self.stops < 0:
            given = await super().fetch(blobs, sink, progress)
            self.has_given.set()
            return given
        if self.is_told_when:
            return await self._give_when_told(blobs, sink, progress)
        await trio.sleep(self.hesitates)
        if len(blobs) > 1:
            await self.may_go_on.wait()
            return await super().fetch(blobs, sink, progress)
        (blob,) = blobs
        incoming, content = sink.create(blob), self.blobs.contents[blob]
        os.pwrite(incoming.fd, content[: blob.size // 2], 0)
        if not self.stops:
            self.is_at_it.set()
        try:
            await self.may_go_on.wait()
        except trio.Cancelled:
            incoming.discard()
            raise
        if self.breaks:
            incoming.discard()
            raise TierUnavailable(f"{self.place} has gone")
        os.pwrite(incoming.fd, content[blob.size // 2 :], blob.size // 2)
        incoming.accept()
        return Fetched(frozenset(blobs), {})

    async def gives_one(self) -> None:
        """Of those that it was asked for, the next."""
        await self._tell.send(None)
        await self._given.receive()

    async def _give_when_told(self, blobs: Collection[Blob], sink: Sink, progress: Progress) -> Fetched:
        arrived: set[Blob] = set()
        for blob in blobs:
            await self._told.receive()
            arrived |= (await super().fetch([blob], sink, progress)).arrived
            await self._gave.send(None)
        return Fetched(frozenset(arrived), {})


class Restoring:
    """A volume that is mounted, and whose content is to come from a slow peer."""

    def __init__(self, node: Node, peer: SlowPeer) -> None:
        self.peer = peer
        self.ram, self.volume, self.tree = node.ram, node.volume, node.tree
        self._restorer = Restorer(node.layout, node.ram, node.fetcher, trio.CapacityLimiter(2), at_once_bytes=0)
        self._filling = Filling(node.layout, node.ram, node.fetcher, there_is_room, there_is_room)

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


async def test_what_is_opened_while_its_stream_is_being_opened_is_waited_for(
    bench: Bench, restoring: Restoring, autojump_clock: MockClock
) -> None:
    content = b"model" * 10_000
    await restoring.begin(bench, {"model": content})
    restoring.peer.hesitates = 1.0
    restoring.peer.may_go_on.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.bring_all)
        await restoring.peer.is_asked.wait()
        assert await restoring.open("model") == content


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


async def test_what_lies_far_back_in_a_part_that_comes_slowly_is_waited_for(
    bench: Bench, restoring: Restoring, mock_clock: MockClock
) -> None:
    files = {f"rank_{number}": bytes([number]) * 10_000 for number in range(8)}
    await restoring.begin(bench, files)
    restoring.peer.is_told_when = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.bring_all)
        await restoring.peer.is_asked.wait()
        last = max(files, key=lambda name: (restoring.tree / name).stat().st_ino)
        nursery.start_soon(restoring.open, last)
        for _ in files:
            await restoring.peer.gives_one()
            await wait_all_tasks_blocked()
            mock_clock.jump(4)  # seconds
    assert {path.name: path.read_bytes() for path in restoring.tree.iterdir()} == files
    assert len(restoring.peer.asked) == len(files)


async def test_what_is_in_a_part_of_which_nothing_comes_is_asked_for_by_itself(
    bench: Bench, restoring: Restoring, autojump_clock: MockClock
) -> None:
    files = {f"rank_{number}": bytes([number]) * 10_000 for number in range(4)}
    await restoring.begin(bench, files)
    restoring.peer.gives_twice = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.bring_all)
        await restoring.peer.is_asked.wait()
        assert await restoring.open("rank_2") == files["rank_2"]
        restoring.peer.may_go_on.set()


SAME = {"rank_0": b"the same" * 1000, "rank_1": b"the same" * 1000, "rank_2": b"the same" * 1000}


async def test_equal_files_that_are_opened_at_once_come_once(bench: Bench, restoring: Restoring) -> None:
    await restoring.begin(bench, SAME)
    async with trio.open_nursery() as nursery:
        for name in SAME:
            nursery.start_soon(restoring.open, name)
        await restoring.peer.is_at_it.wait()
        restoring.peer.may_go_on.set()
    assert {path.name: path.read_bytes() for path in restoring.tree.iterdir()} == SAME
    assert len(restoring.peer.asked) == 1


async def test_what_came_with_one_file_need_not_come_for_others_that_are_equal(
    bench: Bench, restoring: Restoring
) -> None:
    await restoring.begin(bench, SAME)
    restoring.peer.may_go_on.set()
    assert await restoring.open("rank_1") == SAME["rank_1"]
    assert await restoring.open("rank_0") == SAME["rank_0"]
    await restoring.bring_all()
    assert {path.name: path.read_bytes() for path in restoring.tree.iterdir()} == SAME
    assert len(restoring.peer.asked) == 1


async def test_who_gives_up_leaves_equal_files_to_those_that_still_wait(bench: Bench, restoring: Restoring) -> None:
    await restoring.begin(bench, SAME)
    restoring.peer.gives_twice = True
    first = trio.CancelScope()

    async def open_first() -> None:
        with first:
            await restoring.open("rank_0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_first)
        await restoring.peer.is_at_it.wait()
        nursery.start_soon(restoring.open, "rank_1")
        await wait_all_tasks_blocked()
        first.cancel()
    assert (restoring.tree / "rank_1").read_bytes() == SAME["rank_1"]


async def test_what_nobody_can_give_now_is_told_to_all_who_wait_for_equal_files(
    bench: Bench, restoring: Restoring, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed", "restore.content_lost")
    await restoring.begin(bench, SAME)
    restoring.peer.breaks = True
    told: list[TierError] = []

    async def open_it(name: str) -> None:
        with pytest.raises(TierUnavailable) as caught:
            await restoring.open(name)
        told.append(caught.value)

    async with trio.open_nursery() as nursery:
        for name in SAME:
            nursery.start_soon(open_it, name)
        await restoring.peer.is_at_it.wait()
        await wait_all_tasks_blocked()
        restoring.peer.may_go_on.set()
    assert len(told) == len(SAME)
    assert len(restoring.peer.asked) == 1
