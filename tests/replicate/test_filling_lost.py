"""Content that a restore brings behind the mount, and that does not come: what becomes of it, and of the volume."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import pytest
import trio
from trio.testing import MockClock

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierUnavailable
from fuse_tier.ram.arrival import coming_files
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.filling import Filling
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.settling import keep_snapshots
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import keep
from tests.replicate.cluster import MemoryPeer, Neighbourhood
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench


class Answering(MemoryPeer):
    """A peer that may be away."""

    answers = True

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        if not self.answers:
            raise TierUnavailable(f"{self.place} does not answer")
        return await super().fetch(blobs, sink, progress)


async def nothing_to_give_up(size: int) -> int:
    return 0


class Restoring:
    """Node ``a`` is restored from ``c``, which is away before it has given anything; ``d`` has room for copies."""

    def __init__(self, bench: Bench, source: Answering, replicas: int = 1) -> None:
        self.bench = bench
        self.around = Neighbourhood(bench, "cd", replicas)
        self.source = source
        self.around.peers["c"] = self.source
        for name, peer in self.around.peers.items():
            peer.place = f"peer {name}"
        fetcher = Fetcher(self.around.places, "a")
        self.restorer = Restorer(bench.layout, bench.ram, fetcher, trio.CapacityLimiter(2), at_once_bytes=0)
        self.filling = Filling(bench.layout, bench.ram, fetcher, nothing_to_give_up, nothing_to_give_up)

    async def begin(self) -> None:
        """The names are there, and who has the content goes."""
        saved = await keep(self.source, {"weights": b"0123"}, identity=IDENTITY)
        chosen = Chosen(saved, (self.around.places.peer(self.around.members["c"]),), saved.id.number)
        await self.restorer.into_volume(self.bench.volume, chosen, LINEAGE)
        self.source.answers = False
        self.around.change("c", alive=False)

    def come_back(self) -> None:
        """With its RAM."""
        self.source.answers = True
        self.around.come_back("c")

    async def until(self, fact: Callable[[], Awaitable[bool]], clock: MockClock) -> None:
        """Time passes until something is so."""
        while not await fact():
            clock.jump(0.1)
            await trio.testing.wait_all_tasks_blocked()


async def test_what_only_a_node_had_that_died_is_given_up_and_what_the_job_has_saved_is_copied(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed", "restore.file_lost", "copy.failed")
    restoring, volume = Restoring(bench, Answering()), bench.volume
    await restoring.begin()
    for keeps in (restoring.filling.keep_filled, restoring.around.fanout.keep_peers, keep_snapshots):
        nursery.start_soon(keeps, volume)
    (bench.tree / "saved").write_bytes(b"before it was given up")
    volume.changes.announce()

    async def is_copied() -> bool:
        peer = restoring.around.peers["d"]
        listed = [await peer.manifest(snapshot) for snapshot in await peer.snapshots(IDENTITY)]
        return any(entry.path == b"saved" for manifest in listed for entry in manifest.entries)

    async def has_begun() -> bool:
        return volume.newest is not None and volume.newest.id.number > 1

    await restoring.until(has_begun, mock_clock)
    await restoring.until(is_copied, mock_clock)
    assert trio.current_time() > Deadline.RETURN  # it might have come back before
    inode = (bench.tree / "weights").stat().st_ino
    assert volume.is_remote(inode)

    restoring.come_back()
    await restoring.filling.materialize(volume, inode)
    assert (bench.tree / "weights").read_bytes() == b"0123"


@pytest.mark.parametrize("who", ["the bucket", "a node that cannot be asked"])
async def test_what_somebody_may_have_is_not_given_up_however_long_that_one_is_out_of_reach(
    who: str, bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed")
    restoring, far = Restoring(bench, Answering()), Answering()
    await restoring.begin()
    if who == "the bucket":
        far.name, far.place, far.answers = TierName.BUCKET, who, False
        far.blobs = restoring.source.blobs
        restoring.around.places.bucket = far
    else:
        restoring.around.membership.silent = ("node c",)
        bench.volume.coming = Chosen(None)  # as a worker finds it that starts in the middle
    nursery.start_soon(restoring.filling.keep_filled, bench.volume)

    async def has_waited() -> bool:
        return trio.current_time() > 10 * Deadline.RETURN

    async def is_here() -> bool:
        return bench.volume.coming is None

    await restoring.until(has_waited, mock_clock)
    if who == "the bucket":
        far.answers = True
    else:
        restoring.come_back()
    await restoring.until(is_here, mock_clock)
    assert (bench.tree / "weights").read_bytes() == b"0123"


async def test_once_something_was_given_up_what_the_job_has_saved_is_copied_at_once(
    bench: Bench, nursery: trio.Nursery, mock_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("restore.place_failed", "restore.file_lost", "copy.failed")
    restoring, volume = Restoring(bench, Answering()), bench.volume
    await restoring.begin()
    nursery.start_soon(restoring.filling.keep_filled, volume)

    async def is_lost() -> bool:
        return not coming_files(volume.layout)

    await restoring.until(is_lost, mock_clock)
    while volume.coming is not None:  # no time passes any more
        await volume.news.wait_beyond(volume.news.version)
