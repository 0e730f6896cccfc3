"""What a drain waits for, and that it does not wait for what will not come."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_tier.replicate.agreeing import Agreeing
from fuse_tier.replicate.backup import BackupPolicy, Turn
from fuse_tier.replicate.choice import Chooser
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.instant import Quiescent, TreeVersion
from fuse_tier.replicate.mounting import Mounting
from fuse_tier.replicate.preparing import Preparing
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.supervisor import Supervisor
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.memory import MemoryTier
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import Bench
from tests.replicate.test_backups import Cluster, backups_of, save

_AN_HOUR = 3600.0


def mounting_of(around: Neighbourhood, nursery: trio.Nursery, *, has_bucket: bool = True) -> Mounting:
    bench, limiter = around.bench, trio.CapacityLimiter(2)
    volumes = Volumes(bench.layout, bench.ram, bench.volume.options, limiter, nursery, has_bucket=has_bucket)
    restorer = Restorer(bench.layout, bench.ram, Fetcher(around.places, "a"), limiter)
    preparing = Preparing(Chooser(around.places), restorer, around.membership, Agreeing(around.membership))
    return Mounting(volumes, preparing, around.membership, Supervisor("/nowhere"))


async def test_where_peers_have_no_room_everything_goes_to_the_bucket_though_it_is_not_due(
    bench: Bench, nursery: trio.Nursery
) -> None:
    around, bucket, cluster = Neighbourhood(bench, "b", 1), MemoryTier(TierName.BUCKET, "gs://bucket"), Cluster()
    around.peers["b"].blobs.capacity = 0
    around.places.bucket = bucket
    cluster.turn = Turn(None, _AN_HOUR)
    backups = backups_of(bench, cluster, BackupPolicy(every=_AN_HOUR))
    whole = await save(bench, 100)
    nursery.start_soon(around.fanout.keep_peers, bench.volume)
    nursery.start_soon(around.fanout.keep_bucket, bench.volume, backups)

    async def is_not_due() -> bool:
        await trio.lowlevel.checkpoint()
        return bool(backups.status(bench.volume)["state"] == "waiting")

    await until(is_not_due)
    (bench.tree / "half").write_bytes(b"of a checkpoint")
    bench.volume.changes.announce()
    nursery.start_soon(mounting_of(around, nursery).drain, bench.volume, _AN_HOUR)

    async def has_both() -> bool:
        listed = await bucket.snapshots()
        return whole.id in listed and len(listed) == 2

    await until(has_both)


async def test_a_copy_on_a_node_that_leaves_as_well_is_not_enough(bench: Bench, nursery: trio.Nursery) -> None:
    around = Neighbourhood(bench, "bc", 1)
    saved = await save(bench, 100)
    bench.volume.copies.stored(TierName.PEER, "b", saved.id.number)
    around.leave("b")
    ended = trio.Event()

    async def drain() -> None:
        await mounting_of(around, nursery, has_bucket=False).drain(bench.volume, _AN_HOUR)
        ended.set()

    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    assert not ended.is_set()
    bench.volume.copies.stored(TierName.PEER, "c", saved.id.number)
    with trio.fail_after(60):
        await ended.wait()


class _Deaf(Quiescent):
    """The gate of a daemon that does not say how its tree is."""

    async def version(self) -> TreeVersion:
        return await trio.sleep_forever()


async def test_a_tree_that_cannot_be_read_holds_up_a_drain_no_longer_than_it_was_told_and_a_moment(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("snapshot.postponed")
    around = Neighbourhood(bench, "", 1)
    bench.volume.gate = _Deaf()
    bench.volume.changes.announce()
    began = trio.current_time()
    await mounting_of(around, nursery, has_bucket=False).drain(bench.volume, 10)
    assert trio.current_time() - began == pytest.approx(10, abs=0.1), "by the clock of the test"
    await mounting_of(around, nursery, has_bucket=False).drain(bench.volume, 0)
    assert trio.current_time() - began == pytest.approx(15, abs=0.1)
