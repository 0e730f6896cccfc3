"""Which snapshot of a volume is brought to the bucket next, on a real RAM tier."""

from __future__ import annotations

from collections.abc import Collection

import trio

from fuse_tier.blobs import Blob, Progress, Source
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.backup import WHEN_THERE_IS_MORE, BackupPolicy, Turn
from fuse_tier.replicate.backups import Backups
from fuse_tier.tiers.base import TierName, no_progress
from fuse_tier.tiers.memory import MemoryTier
from tests.replicate.cluster import Neighbourhood
from tests.replicate.conftest import Bench

PLACE = "gs://checkpoints"


class Cluster:
    """The steward's word, as the test wants it, and what it was told."""

    def __init__(self) -> None:
        self.turn = Turn(None, 60.0)
        self.asked: list[int] = []
        self.told = 0

    async def ask(self, identity: Identity, run: str, step: int, every: float) -> Turn:
        self.asked.append(step)
        return self.turn

    async def tell(self, identity: Identity) -> None:
        self.told += 1


def backups_of(bench: Bench, cluster: Cluster, policy: BackupPolicy) -> Backups:
    return Backups(policy, bench.ram, cluster.ask, cluster.tell)


async def save(bench: Bench, step: int) -> Manifest:
    (bench.tree / str(step)).mkdir()
    (bench.tree / str(step) / "weights").write_bytes(b"step %d" % step)
    bench.volume.changes.announce()
    taken = await bench.volume.take_snapshot()
    assert taken is not None
    return taken


async def bring(bench: Bench, backups: Backups, manifest: Manifest) -> None:
    """What the fan-out does around a copy that succeeds."""
    backups.begin(bench.volume, manifest)(manifest.size)
    assert backups.status(bench.volume)["state"] == "copying"
    assert backups.status(bench.volume)["moved_bytes"] == manifest.size
    bench.volume.copies.stored(TierName.BUCKET, PLACE, manifest.id.number)
    await backups.ended(bench.volume, manifest, done=True)


async def test_always_the_newest_is_chosen_and_nothing_when_the_bucket_has_it(bench: Bench) -> None:
    cluster = Cluster()
    backups = backups_of(bench, cluster, BackupPolicy())
    assert await backups.choose(bench.volume) == (None, WHEN_THERE_IS_MORE)
    await save(bench, 100)
    newest = await save(bench, 200)
    assert await backups.choose(bench.volume) == (newest, 0.0)
    await bring(bench, backups, newest)
    assert await backups.choose(bench.volume) == (None, WHEN_THERE_IS_MORE)
    assert (cluster.asked, cluster.told) == ([], 1)
    assert backups.status(bench.volume)["state"] == "idle"


async def test_a_rank_that_is_ahead_brings_the_step_that_has_the_turn_while_it_still_has_it(bench: Bench) -> None:
    cluster = Cluster()
    backups = backups_of(bench, cluster, BackupPolicy(every=3600.0))
    first, second = await save(bench, 100), await save(bench, 200)
    cluster.turn = Turn(100, 1800.0)
    assert await backups.choose(bench.volume) == (first, 0.0)
    await bring(bench, backups, first)
    assert await backups.choose(bench.volume) == (None, 1800.0)
    status = backups.status(bench.volume)
    assert (status["state"], status["snapshot"]) == ("waiting", None)
    assert 0 < status["due_in_seconds"] <= 1800
    cluster.turn = Turn(200)
    assert await backups.choose(bench.volume) == (second, 0.0)
    assert cluster.asked == [200, 200, 200]


async def test_a_rank_that_lags_behind_waits_until_it_comes_to_the_step(bench: Bench) -> None:
    cluster = Cluster()
    backups = backups_of(bench, cluster, BackupPolicy(every=3600.0))
    await save(bench, 100)
    cluster.turn = Turn(None, 900.0)
    assert await backups.choose(bench.volume) == (None, 900.0)


async def test_what_somebody_waits_for_is_brought_without_asking_whose_turn_it_is(bench: Bench) -> None:
    cluster = Cluster()
    backups = backups_of(bench, cluster, BackupPolicy(every=3600.0))
    cluster.turn = Turn(100, 1800.0)
    await bring(bench, backups, await save(bench, 100))
    newest = await save(bench, 200)
    cluster.asked.clear()
    bench.volume.demanded = newest.id.number
    assert await backups.choose(bench.volume) == (newest, 0.0)
    assert cluster.asked == []


async def test_a_copy_that_failed_is_chosen_again_or_what_is_newer_then(bench: Bench) -> None:
    backups = backups_of(bench, Cluster(), BackupPolicy(steps=100))
    first = await save(bench, 100)
    backups.begin(bench.volume, first)
    await backups.ended(bench.volume, first, done=False, reason="no right")
    assert backups.failing([bench.volume]) == {bench.volume.identity: "no right"}
    assert await backups.choose(bench.volume) == (first, 0.0)
    second = await save(bench, 200)
    assert await backups.choose(bench.volume) == (second, 0.0)
    await bring(bench, backups, second)
    assert backups.failing([bench.volume]) == {}


async def test_what_another_node_has_mounted_does_not_come_from_here(bench: Bench) -> None:
    backups = backups_of(bench, Cluster(), BackupPolicy())
    assert backups.brings(bench.volume)
    backups.note_owner(bench.volume, is_ours=False)
    assert not backups.brings(bench.volume), "nobody here need wait for it"
    backups.note_owner(bench.volume, is_ours=True)
    assert backups.brings(bench.volume)


class SlowBucket(MemoryTier):
    """A bucket that takes content in when the test says so, and tells who sends it at the same time."""

    def __init__(self) -> None:
        super().__init__(TierName.BUCKET, PLACE)
        self.open_at = trio.Event()
        self.begun = trio.Event()
        self.at_once = self.most_at_once = 0

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        await self.open_at.wait()
        await super().store(blobs, source, progress)
        self.at_once -= 1


async def test_never_two_of_one_volume_are_under_way_and_what_was_superseded_is_skipped(
    bench: Bench, nursery: trio.Nursery
) -> None:
    around, bucket = Neighbourhood(bench, "bc", 1), SlowBucket()
    around.places.bucket = bucket
    backups = backups_of(bench, Cluster(), BackupPolicy())
    nursery.start_soon(around.fanout.keep_bucket, bench.volume, backups)
    first = await save(bench, 100)
    await bucket.begun.wait()
    for step in (200, 300):
        await save(bench, step)
    newest = await save(bench, 400)
    bucket.open_at.set()
    with trio.fail_after(10):
        await bench.volume.wait_until_on(TierName.BUCKET, newest.id.number, 1)
    assert list(await bucket.snapshots()) == [first.id, newest.id]
    assert bucket.most_at_once == 1
