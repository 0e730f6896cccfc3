"""What the steward makes of a bucket, and what it answers: on an emulator, with real snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace

import pytest
import trio
import trio.testing

from fuse_tier.checkpoints import Job
from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.errors import MalformedManifest, NotFound, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate import offline
from fuse_tier.replicate.offline import Wanted
from fuse_tier.replicate.records import JobRecords
from fuse_tier.replicate.retention import Keep
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.stewardship import Stewardship
from fuse_tier.tiers.bucket import BucketTier
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding, manifest_of
from tests.harness.waiting import until
from tests.tiers.faulty_http import Fault, Proxy, faulty

BUCKET = "checkpoints"
JOB = Job("default", "llama")
ZERO, ONE = JOB.identity("0"), JOB.identity("1")
AT = 1_700_000_000 * 10**9
MINUTE = 60 * 10**9


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with running_emulator(BUCKET) as emulator:
        yield emulator


@pytest.fixture
async def proxy(emulator: Emulator) -> AsyncIterator[Proxy]:
    with faulty(emulator.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def bucket(proxy: Proxy) -> AsyncIterator[BucketTier]:
    tier = BucketTier(f"gs://{BUCKET}/team", proxy.endpoint, patience=0.5)
    yield tier
    await tier.aclose()


def steward(bucket: BucketTier, keep: int = 5, mounted: Collection[str] = ()) -> Stewardship:
    return Stewardship(bucket, Keep(keep), lambda job: frozenset(mounted), lambda: True)


async def save(bucket: BucketTier, identity: Identity, number: int, *steps: int, run: str = "llama") -> SnapshotId:
    """A rank's snapshot whose tree has these steps."""
    files = {f"step_{step}.pt": f"{identity} {step}".encode() for step in steps}
    manifest = replace(manifest_of(files, number, identity), lineage=Lineage(run), created_ns=AT + number * MINUTE)
    await bucket.store(manifest.blobs, holding(files.values()))
    await bucket.commit(manifest)
    return manifest.id


async def save_all(bucket: BucketTier, number: int, *steps: int) -> None:
    for identity in (ZERO, ONE):
        await save(bucket, identity, number, *steps)


async def names(bucket: BucketTier) -> tuple[str, ...]:
    return (await JobRecords(bucket).listing(JOB)).checkpoints


async def test_a_checkpoint_is_recorded_when_every_rank_has_it_and_not_before(bucket: BucketTier) -> None:
    keeper = steward(bucket)
    await save(bucket, ZERO, 1, 100)
    await keeper.tend(JOB)
    assert await names(bucket) == ("2023-11-14_22-14",), "one volume was the whole job then"
    await save(bucket, ONE, 1, 90)
    await save(bucket, ZERO, 2, 100, 200)
    await keeper.tend(JOB)
    assert len(await names(bucket)) == 1
    await save(bucket, ONE, 2, 100, 200)
    await keeper.tend(JOB)
    (*_, newest) = await names(bucket)
    record = await JobRecords(bucket).checkpoint(JOB, newest)
    assert (newest, record.step, record.snapshots) == ("2023-11-14_22-15", 200, {"0": 2, "1": 2})
    size = sum(len(f"{identity} {step}") for identity in (ZERO, ONE) for step in (100, 200))
    assert [(one.step, one.ranks, one.tiers, one.size) for one in keeper.standings()] == [
        (100, 1, ("bucket",), len(f"{ZERO} 100")),
        (200, 2, ("bucket",), size),
    ]


async def test_a_rank_that_is_mounted_and_has_brought_nothing_is_waited_for(bucket: BucketTier) -> None:
    await save(bucket, ZERO, 1, 100)
    await steward(bucket, mounted={"0", "1"}).tend(JOB)
    assert await names(bucket) == ()


async def test_two_stewards_at_once_leave_one_record(bucket: BucketTier) -> None:
    await save_all(bucket, 1, 100)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(steward(bucket).tend, JOB)
    assert len(await names(bucket)) == 1


async def test_what_was_superseded_goes_checkpoint_by_checkpoint(bucket: BucketTier) -> None:
    keeper = steward(bucket, keep=2)
    for number, step in enumerate((100, 200, 300, 400), start=1):
        await save_all(bucket, number, step)
        await keeper.tend(JOB)
    listing = await JobRecords(bucket).listing(JOB)
    assert sorted(one.number for one in listing.snapshots) == [3, 3, 4, 4]
    assert [(await JobRecords(bucket).checkpoint(JOB, name)).step for name in listing.checkpoints] == [300, 400]


async def test_what_is_being_restored_is_spared_until_it_was(bucket: BucketTier) -> None:
    keeper = steward(bucket, keep=1)
    await save_all(bucket, 1, 100)
    await keeper.tend(JOB)
    await save_all(bucket, 2, 200)

    async def restore() -> None:
        await keeper.tend(JOB)
        assert SnapshotId(ZERO, 1) in await bucket.snapshots(ZERO)
        assert SnapshotId(ONE, 1) not in await bucket.snapshots(ONE)

    await JobRecords(bucket).while_using(SnapshotId(ZERO, 1), restore)
    await keeper.tend(JOB)
    assert SnapshotId(ZERO, 1) not in await bucket.snapshots(ZERO)


async def test_what_the_bucket_protects_stays_and_is_told_and_all_else_goes(bucket: BucketTier, proxy: Proxy) -> None:
    keeper = steward(bucket, keep=1)
    for number, step in ((1, 100), (2, 200)):
        await save_all(bucket, number, step)
    await keeper.tend(JOB)
    await save_all(bucket, 3, 300)
    proxy.protected["llama/0/0000000000000000002"] = "Object is under active Temporary hold"
    await keeper.tend(JOB)
    assert sorted(map(str, await bucket.snapshots())) == [
        "default/llama/0@2", "default/llama/0@3", "default/llama/1@3"
    ]  # fmt: skip
    facts = await keeper.prune(Report(), dry_run=False)
    assert facts["protected_objects"] == 1
    assert "hold" in facts["protected"][0]["reason"]


async def test_who_prunes_is_told_of_soft_delete_and_of_nothing_where_that_may_not_be_known(
    bucket: BucketTier, proxy: Proxy
) -> None:
    await save_all(bucket, 1, 100)
    told = []
    for seconds in (0, 604_800):
        proxy.settings = {"softDeletePolicy": {"retentionDurationSeconds": str(seconds)}}
        told.append((await steward(bucket).prune(Report(), dry_run=True))["soft_delete_seconds"])
    proxy.faults.append(Fault("GET", "/b/checkpoints?", status=403, says="no storage.buckets.get"))
    told.append((await steward(bucket).prune(Report(), dry_run=True))["soft_delete_seconds"])
    assert told == [0, 604_800, None]


async def test_a_dry_run_tells_what_would_go_and_changes_nothing(bucket: BucketTier) -> None:
    for number, step in ((1, 100), (2, 200)):
        await save_all(bucket, number, step)
    before = await bucket.snapshots()
    facts = await steward(bucket, keep=1).prune(Report(), dry_run=True)
    (job,) = facts["jobs"]
    assert job["drop_snapshots"] == ["default/llama/0@1", "default/llama/1@1"]
    assert facts["freed_later_bytes"] == job["bytes"] == 2 * len("default/llama/0 100")
    assert await bucket.snapshots() == before
    again = await steward(bucket, keep=1).prune(Report(), dry_run=False)
    assert again["jobs"] == facts["jobs"]
    assert sorted(map(str, await bucket.snapshots())) == ["default/llama/0@2", "default/llama/1@2"]


async def test_a_thousand_who_ask_at_once_cost_two_listings(bucket: BucketTier, proxy: Proxy) -> None:
    await save_all(bucket, 1, 100)
    keeper = steward(bucket)
    answers: list[tuple[int, ...]] = []

    async def ask(identity: Identity) -> None:
        answers.append((await keeper.in_bucket(identity)).numbers)

    proxy.requests.clear()
    async with trio.open_nursery() as nursery:
        for index in range(1000):
            nursery.start_soon(ask, ZERO if index % 2 else ONE)
    assert answers == [(1,)] * 1000
    assert len(proxy.requests) <= 4, proxy.requests  # each listing is of records and of snapshots


async def test_who_asks_is_told_of_all_that_was_there_when_it_asked(bucket: BucketTier, proxy: Proxy) -> None:
    """A listing that is under way may have passed what came after it began: it is not shared with later askers."""
    await save(bucket, ZERO, 1, 100)
    keeper = steward(bucket)
    under_way, go_on = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hold() -> None:
        trio.from_thread.run(report_and_wait, trio_token=token)

    async def report_and_wait() -> None:
        under_way.set()
        await go_on.wait()

    answers: dict[str, tuple[int, ...]] = {}

    async def ask(who: str) -> None:
        answers[who] = (await keeper.in_bucket(ZERO)).numbers

    proxy.faults.append(Fault("GET", "manifests", first=hold, times=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "early")
        await under_way.wait()
        await save(bucket, ZERO, 2, 200)
        nursery.start_soon(ask, "late")
        await trio.testing.wait_all_tasks_blocked(0.01)
        go_on.set()
    assert answers["late"] == (1, 2)


async def test_a_listing_that_fails_fails_for_those_who_share_it_and_the_next_one_is_made_anew(
    bucket: BucketTier, proxy: Proxy
) -> None:
    await save(bucket, ZERO, 1, 100)
    keeper = steward(bucket)
    proxy.faults.append(Fault("GET", "checkpoints", status=503, times=1000))
    with pytest.raises(TierUnavailable):
        await keeper.in_bucket(ZERO)
    proxy.faults.clear()
    assert (await keeper.in_bucket(ZERO)).numbers == (1,)


async def test_a_version_is_answered_with_each_ranks_part_of_it(bucket: BucketTier) -> None:
    keeper = steward(bucket)
    for number, step in ((1, 100), (2, 200)):
        await save_all(bucket, number, step)
        await keeper.tend(JOB)
    first, _ = await names(bucket)
    for identity in (ZERO, ONE):
        assert (await keeper.in_bucket(identity)).forced == 0
        assert (await keeper.in_bucket(identity, first)).forced == 1
    with pytest.raises(NotFound, match="has no snapshot of default/llama/7"):
        await keeper.in_bucket(JOB.identity("7"), first)
    with pytest.raises(NotFound, match="no checkpoint 2020-01-01_00-00"):
        await keeper.in_bucket(ZERO, "2020-01-01_00-00")


async def test_restore_version_forces_a_checkpoint_until_the_next_one_is_complete(bucket: BucketTier) -> None:
    keeper = steward(bucket)
    await save_all(bucket, 1, 100)
    await keeper.tend(JOB)
    (first,) = await names(bucket)
    await save_all(bucket, 2, 200)
    await bucket.documents.create(f"{JOB}/restore.version", first.encode() + b"\n")
    await keeper.tend(JOB)  # records what was complete before: that ends nothing
    answer = await keeper.in_bucket(ZERO)
    assert (answer.forced, answer.version) == (1, first)
    await save(bucket, ZERO, 3, 100)  # the job went back and goes on from there
    await keeper.tend(JOB)
    assert (await keeper.in_bucket(ONE)).forced == 1
    await save(bucket, ONE, 3, 100)
    await keeper.tend(JOB)
    assert (await keeper.in_bucket(ONE)).forced == 0
    (*_, newest) = await names(bucket)
    assert (await JobRecords(bucket).checkpoint(JOB, newest)).snapshots == {"0": 3, "1": 3}


async def test_a_version_that_the_bucket_keeps_counts_no_longer_after_the_next_complete_checkpoint(
    bucket: BucketTier, proxy: Proxy
) -> None:
    keeper = steward(bucket)
    await save_all(bucket, 1, 100)
    await keeper.tend(JOB)
    (first,) = await names(bucket)
    await bucket.documents.create(f"{JOB}/restore.version", first.encode())
    proxy.protected = {"restore.version": "Object is subject to bucket's retention policy until 2027-01-01."}
    assert (await offline.find(bucket, Wanted(ZERO))).is_forced
    await save_all(bucket, 2, 200)
    await keeper.tend(JOB)
    assert (await keeper.in_bucket(ZERO)).forced == 0
    found = await offline.find(bucket, Wanted(ZERO))
    assert (found.snapshot.number, found.is_forced) == (2, False)


async def test_a_version_that_a_person_writes_while_the_one_before_ends_is_not_lost(
    bucket: BucketTier, proxy: Proxy
) -> None:
    await save_all(bucket, 1, 100)
    await bucket.documents.create(f"{JOB}/restore.version", b"2020-01-01_00-00")
    listing = await JobRecords(bucket).listing(JOB)
    assert listing.forced_by is not None
    proxy.faults.append(Fault("POST", "/batch/", status=404))  # so that each call is a request of its own
    await JobRecords(bucket).end_forced(listing)
    # Emulators delete whatever is there; the service only this one.
    assert proxy.requests[-1].endswith(f"restore.version?ifGenerationMatch={listing.forced_by.generation}")


async def test_a_version_file_that_names_nothing_is_told_to_who_would_restore(bucket: BucketTier) -> None:
    await save_all(bucket, 1, 100)
    await bucket.documents.create(f"{JOB}/restore.version", b"yesterday's")
    with pytest.raises(MalformedManifest, match="yesterday's"):
        await steward(bucket).in_bucket(ZERO)
    await steward(bucket).tend(JOB)


async def test_an_unreadable_record_or_manifest_stops_nothing_else(
    bucket: BucketTier, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("steward.record_unreadable", "steward.manifest_unreadable")
    await save_all(bucket, 1, 100)
    await bucket.documents.create(f"{JOB}/2020-01-01_00-00.json", b"{}")
    keeper = steward(bucket)
    await keeper.tend(JOB)
    assert await names(bucket) == ("2020-01-01_00-00", "2023-11-14_22-14")


async def test_one_jobs_trouble_is_no_others_and_is_told_once(
    bucket: BucketTier, proxy: Proxy, nursery: trio.Nursery, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("retention.postponed")
    keeper = steward(bucket)
    other = Job("default", "zebra")
    await save(bucket, JOB.identity("0"), 1, 100)
    await save(bucket, other.identity("0"), 1, 100)
    proxy.faults.append(Fault("GET", "llama", status=403, times=1000))
    nursery.start_soon(keeper.run)

    async def is_recorded() -> bool:
        keeper.note(JOB)
        keeper.note(other)
        return bool((await JobRecords(bucket).listing(other)).checkpoints)

    await until(is_recorded)
    nursery.cancel_scope.cancel()


async def test_while_a_record_cannot_be_read_nothing_of_its_job_is_given_up(
    bucket: BucketTier, expected_logs: ExpectedLogs
) -> None:
    """A newer version's record, say: what it names is not known."""
    expected_logs.allow("steward.record_unreadable")
    await bucket.documents.create(f"{JOB}/2031-01-01_00-00.json", b'{"fuse_tier_checkpoint":2}\n')
    keeper = steward(bucket, keep=1)
    for number, step in ((1, 100), (2, 200), (3, 300)):
        await save_all(bucket, number, step)
        await keeper.tend(JOB)
    assert len(await bucket.snapshots()) == 6
    assert len(await names(bucket)) == 4
    await JobRecords(bucket).drop(JOB, ["2031-01-01_00-00"])
    await keeper.tend(JOB)
    assert {one.number for one in await bucket.snapshots()} == {3}


async def test_a_record_that_the_bucket_protects_keeps_what_it_names(bucket: BucketTier, proxy: Proxy) -> None:
    keeper = steward(bucket, keep=1)
    await save_all(bucket, 1, 100)
    await keeper.tend(JOB)
    (first,) = await names(bucket)
    proxy.protected[first] = "Object is subject to bucket's retention policy"
    for number, step in ((2, 200), (3, 300)):
        await save_all(bucket, number, step)
        await keeper.tend(JOB)
    assert {one.number for one in await bucket.snapshots()} == {1, 3}
    assert first in await names(bucket)


async def test_it_looks_by_itself_at_what_it_was_told_of_and_after_a_failure_again(
    bucket: BucketTier, proxy: Proxy, nursery: trio.Nursery, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("retention.postponed")
    keeper = steward(bucket)
    await save_all(bucket, 1, 100)
    proxy.faults.append(Fault("POST", "upload", status=503, times=1000))
    nursery.start_soon(keeper.run)
    keeper.note(JOB)

    async def has_failed() -> bool:
        return bool(proxy.befell)

    async def is_recorded() -> bool:
        keeper.note(JOB)
        return bool(await names(bucket))

    await until(has_failed)
    proxy.faults.clear()
    await until(is_recorded)
    nursery.cancel_scope.cancel()
