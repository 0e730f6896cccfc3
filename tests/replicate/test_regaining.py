"""A node that comes back with what was given up for lost: it is asked at once, before it lets go of that."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.errors import TierUnavailable
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.regaining import Regaining
from fuse_tier.replicate.settling import keep_snapshots
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Fetched, no_progress
from tests.harness.logs import ExpectedLogs
from tests.replicate.conftest import IDENTITY, Bench
from tests.replicate.test_filling_lost import Answering, Restoring, nothing_to_give_up


class Forgetful(Answering):
    """Keeps the newest snapshot alone, as a node with ``keep.ram: 1``. Gives nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.gives = trio.Event()
        self.is_asked = trio.Event()
        self.says_what_it_lacks = True

    async def commit(self, manifest: Manifest) -> None:
        await super().commit(manifest)
        for older in [one for one in await self.snapshots(IDENTITY) if one.number < manifest.id.number]:
            await self.drop(older)
        await self.collect(0)

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        if not self.says_what_it_lacks:
            raise TierUnavailable("no answer")
        return await super().missing(blobs)

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        if self.answers:
            self.is_asked.set()
            await self.gives.wait()
        return await super().fetch(blobs, sink, progress)


class Losing:
    """Node ``a``, whose volume has lost a file that ``c`` had alone, and goes on, with copies at ``c`` and ``d``."""

    def __init__(self, bench: Bench, nursery: trio.Nursery, clock: MockClock) -> None:
        self.holder = Forgetful()
        self.bench, self.volume, self.nursery, self.clock = bench, bench.volume, nursery, clock
        self.restoring = Restoring(bench, self.holder, replicas=2)
        self.around = self.restoring.around
        fetcher = Fetcher(self.around.places, "a")
        self.regaining = Regaining(self.around.places, fetcher, nothing_to_give_up)

    async def lose(self) -> None:
        await self.restoring.begin()
        for keeps in (
            self.restoring.filling.keep_filled,
            self.regaining.keep_asking,
            self.around.fanout.keep_peers,
            keep_snapshots,
        ):
            self.nursery.start_soon(keeps, self.volume)
        await self.until(lambda: self.volume.coming is None)
        await self.save("after it was given up")

    async def save(self, name: str) -> None:
        """Returns when a snapshot has it."""
        (self.bench.tree / name).write_bytes(name.encode())
        self.volume.changes.announce()
        await self.until(lambda: name in self.newest())

    def newest(self) -> set[str]:
        """The paths of the newest snapshot."""
        entries = self.volume.newest.entries if self.volume.newest is not None else ()
        return {entry.path.decode() for entry in entries}

    async def until(self, fact: Callable[[], bool]) -> None:
        async def is_so() -> bool:
            return fact()

        await self.restoring.until(is_so, self.clock)

    async def until_copied(self, name: str, node: str = "c") -> None:
        """To the node that was away, or to another."""

        async def is_copied() -> bool:
            peer = self.around.peers[node]
            listed = [await peer.manifest(one) for one in await peer.snapshots(IDENTITY)]
            return any(entry.path == name.encode() for manifest in listed for entry in manifest.entries)

        await self.restoring.until(is_copied, self.clock)


ALLOWED = ("restore.place_failed", "restore.file_lost", "copy.failed")


async def test_what_was_given_up_is_back_before_the_node_that_has_it_lets_go_of_it(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*ALLOWED)
    losing = Losing(bench, nursery, mock_clock)
    await losing.lose()
    losing.holder.gives.set()
    losing.restoring.come_back()
    await losing.save("after it was back")
    await losing.until_copied("after it was back")
    await losing.until_copied("weights")  # though nobody has opened it
    assert (bench.tree / "weights").read_bytes() == b"0123"
    assert not bench.volume.is_remote((bench.tree / "weights").stat().st_ino)


async def test_who_gives_back_what_was_lost_gets_nothing_newer_before_it_has(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*ALLOWED)
    losing = Losing(bench, nursery, mock_clock)
    await losing.lose()
    losing.restoring.come_back()
    await losing.holder.is_asked.wait()
    await losing.save("after it was back")
    await losing.until_copied("after it was back", "d")
    assert 1 in [one.number for one in await losing.holder.snapshots(IDENTITY)]
    losing.holder.gives.set()
    await losing.until(lambda: "weights" in losing.newest())


@pytest.mark.parametrize("fault", ["it has lost it", "it does not say"])
async def test_who_cannot_give_back_what_was_lost_gets_copies_as_before(
    fault: str, bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*ALLOWED)
    losing = Losing(bench, nursery, mock_clock)
    await losing.lose()
    if fault == "it has lost it":
        losing.holder.blobs.contents.clear()
    else:
        losing.holder.says_what_it_lacks = False
    losing.restoring.come_back()
    await losing.until(lambda: losing.volume.lost is not None and not losing.around.fanout.spared(losing.volume))
    losing.holder.says_what_it_lacks = True
    await losing.save("after it was back")
    await losing.until_copied("after it was back")
    assert losing.volume.is_remote((bench.tree / "weights").stat().st_ino)


async def test_a_node_that_drains_waits_for_nothing_that_was_lost(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*ALLOWED)
    losing = Losing(bench, nursery, mock_clock)
    await losing.lose()
    losing.restoring.come_back()
    await losing.holder.is_asked.wait()
    losing.around.copier.drains_since_ns = 0
    await losing.save("while it drains")
    await losing.until_copied("while it drains")


async def test_a_worker_that_was_started_again_asks_for_what_was_lost_before(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*ALLOWED)
    async with trio.open_nursery() as before:
        losing = Losing(bench, before, mock_clock)
        await losing.lose()
        before.cancel_scope.cancel()
    losing.restoring.come_back()
    losing.holder.gives.set()
    again = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    await again.load()
    nursery.start_soon(losing.regaining.keep_asking, again)
    while again.is_remote((bench.tree / "weights").stat().st_ino):
        await again.news.wait_beyond(again.news.version)
    assert (bench.tree / "weights").read_bytes() == b"0123"


async def test_who_goes_away_again_while_it_gives_is_asked_again_when_it_is_back(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*ALLOWED)
    losing = Losing(bench, nursery, mock_clock)
    await losing.lose()
    losing.restoring.come_back()
    await losing.holder.is_asked.wait()
    losing.holder.answers = False
    losing.around.change("c", alive=False)
    losing.holder.gives.set()
    losing.restoring.come_back()
    await losing.until(lambda: "weights" in losing.newest())
    assert (bench.tree / "weights").read_bytes() == b"0123"
