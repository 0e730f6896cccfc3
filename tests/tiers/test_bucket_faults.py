"""The bucket tier against what Cloud Storage does on a bad day."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fuse_tier.errors import Damaged, InvalidRequest, TierRefused, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.tiers import bucket_download, bucket_fetch, bucket_parts, bucket_task, bucket_transfer
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import check_producible, holding, keep
from tests.tiers.conftest import PATIENCE_SECONDS
from tests.tiers.faulty_http import Fault, Proxy

SEVERAL_PIECES = 5 << 20
UPLOAD = "/upload/"
DOWNLOAD = "/download/"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", UPLOAD, status=503, times=2),
        Fault("POST", UPLOAD, status=429),
        Fault("POST", UPLOAD, status=500),
        Fault("POST", UPLOAD, cut_request_after=3 << 20),
        Fault("POST", UPLOAD, lose_answer=True, times=4),
        Fault("POST", UPLOAD, change_request=True),
        Fault("GET", "/o/", status=503, times=3),
        Fault("GET", "/o?", status=502, times=3),
        Fault("GET", "/o?", cut_answer_after=1, times=2),
        Fault("GET", DOWNLOAD, cut_answer_after=0),
        Fault("GET", DOWNLOAD, cut_answer_after=100, times=3),
        Fault("GET", DOWNLOAD, status=408),
    ],
    ids=lambda fault: f"{fault.method} {fault.path} {fault.kind} {fault.times}",
)
async def test_what_passes_by_itself_is_not_noticed(
    tier: BucketTier, proxy: Proxy, fault: Fault, rng: random.Random
) -> None:
    proxy.faults.append(fault)
    files = {"weights": rng.randbytes(SEVERAL_PIECES)} | {f"{number}": rng.randbytes(3000) for number in range(100)}
    manifest = await keep(tier, files)
    await check_producible(tier)
    assert (await tier.verify()).damaged == ()
    another = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=PATIENCE_SECONDS)
    await check_producible(another)
    await another.drop(manifest.id)
    await another.collect(0)
    assert await another.missing(manifest.blobs) == manifest.blobs
    await another.aclose()
    assert fault.times == 0


async def test_a_download_goes_on_where_it_was_cut(tier: BucketTier, proxy: Proxy, rng: random.Random) -> None:
    content = rng.randbytes(SEVERAL_PIECES)
    await tier.store([hash_bytes(content)], holding([content]))
    proxy.faults += [Fault("GET", f"{DOWNLOAD}storage/v1/b/checkpoints/o/a%2Fblobs", cut_answer_after=2 << 20)] * 2
    moved: list[int] = []
    sink = MemoryBlobs()
    await tier.fetch([hash_bytes(content)], sink, moved.append)
    assert sink.contents == {hash_bytes(content): content}
    assert sum(moved) == len(content)


async def test_progress_counts_what_is_sent_again_once(tier: BucketTier, proxy: Proxy, rng: random.Random) -> None:
    content = rng.randbytes(SEVERAL_PIECES)
    await tier.missing([])
    proxy.faults += [Fault("POST", "uploadType=multipart", lose_answer=True), Fault("POST", UPLOAD, status=503)]
    moved: list[int] = []
    await tier.store([hash_bytes(content)], holding([content]), moved.append)
    assert sum(moved) == len(content)


async def test_content_that_was_changed_on_its_way_never_keeps_its_name(
    tier: BucketTier, proxy: Proxy, rng: random.Random
) -> None:
    content = rng.randbytes(10_000)
    await keep(tier, {})
    proxy.faults.append(Fault("POST", UPLOAD, change_request=True, times=1000))
    impatient = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=0.3)
    with pytest.raises(TierUnavailable, match="arrived damaged"):
        await impatient.store([hash_bytes(content)], holding([content]))
    await impatient.aclose()
    assert await tier.missing([hash_bytes(content)]) == {hash_bytes(content)}


async def test_a_refusal_names_who_lacks_what_and_is_not_tried_again(tier: BucketTier, proxy: Proxy) -> None:
    await tier.snapshots()
    writing, listing = Fault("POST", UPLOAD, status=403, times=9), Fault("GET", "/o?", status=403, times=9)
    proxy.faults += [writing, listing]
    with pytest.raises(TierRefused, match=r"storage\.objects\.create on gs://checkpoints.*roles/storage\.objectUser"):
        await keep(tier, {"weights": b"0123"})
    with pytest.raises(TierRefused, match=r"storage\.objects\.list"):
        await tier.snapshots()
    assert (writing.times, listing.times) == (8, 8)


async def test_credentials_that_do_not_serve_are_told_as_such(tier: BucketTier, proxy: Proxy) -> None:
    await keep(tier, {})
    proxy.faults.append(Fault("GET", "/o?", status=401, times=9))
    with pytest.raises(
        TierRefused, match=r"no valid credentials for gs://checkpoints/a.*GOOGLE_APPLICATION_CREDENTIALS"
    ):
        await tier.snapshots()


async def test_an_answer_that_is_no_storage_service_is_refused(tier: BucketTier, proxy: Proxy) -> None:
    proxy.faults.append(Fault("GET", DOWNLOAD, status=400, times=1000))
    with pytest.raises(TierRefused, match="refused a request"):
        await tier.snapshots()


async def test_an_answer_that_says_nothing_of_the_object_does_not_count(tier: BucketTier, proxy: Proxy) -> None:
    fault = Fault("POST", UPLOAD, status=200)
    proxy.faults.append(fault)
    await keep(tier, {"weights": b"0123"})
    assert not fault.times
    await check_producible(tier)


async def test_what_stays_away_is_unavailable_at_last(tier: BucketTier, proxy: Proxy) -> None:
    await keep(tier, {"weights": b"0123"})
    impatient = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=0.3)
    await impatient.snapshots()
    proxy.faults.append(Fault("GET", "blobs", status=503, times=10_000))
    result = await impatient.fetch([hash_bytes(b"0123")], MemoryBlobs())
    assert isinstance(result.failed[hash_bytes(b"0123")], TierUnavailable)
    with pytest.raises(TierUnavailable, match="cannot serve"):
        await impatient.verify()
    await impatient.aclose()


async def test_a_backup_of_a_few_large_files_takes_few_requests(
    tier: BucketTier, proxy: Proxy, rng: random.Random
) -> None:
    await keep(tier, {f"{number}": rng.randbytes(300_000) for number in range(8)})
    assert len(proxy.requests) <= 24


async def test_what_holds_and_retention_policies_protect_stays_and_is_told(tier: BucketTier, proxy: Proxy) -> None:
    first, second = await keep(tier, {"a": b"0123", "b": b"4567"}, 1), await keep(tier, {"a": b"89ab"}, 2)
    held, kept = hash_bytes(b"0123").name, "0000000000000000002.manifest"
    proxy.protected = {
        held: "Object is under active Temporary hold and cannot be deleted until hold is removed.",
        kept: "Object is subject to bucket's retention policy and cannot be deleted until 2027-01-01.",
    }
    dropped = await tier.drop_all([first.id, second.id])
    assert [name.rpartition("/")[2] for name in dropped.removed] == ["0000000000000000001.manifest"]
    assert [protected.name.rpartition("/")[2] for protected in dropped.kept] == [kept]
    with pytest.raises(TierRefused, match="retention policy"):
        await tier.drop(second.id)
    assert [name.rpartition("/")[2] for name in (await tier.collect_garbage(0, dry_run=True)).removed] == sorted(
        blob.name for blob in first.blobs
    )
    collected = await tier.collect_garbage(0)
    assert (collected.freed, len(collected.removed)) == (4, 1)
    assert [(protected.name.rpartition("/")[2], "hold" in protected.reason) for protected in collected.kept] == [
        (held, True)
    ]
    assert list(await tier.snapshots()) == [second.id]
    proxy.protected = {}
    assert await tier.collect(0) == 4


async def test_many_snapshots_are_dropped_by_few_requests(tier: BucketTier, proxy: Proxy) -> None:
    kept = [(await keep(tier, {"a": b"0123"}, number)).id for number in range(1, 102)]
    before = len(proxy.requests)
    assert len((await tier.drop_all(kept)).removed) == 101
    assert ["/batch/" in request for request in proxy.requests[before:]] == [True, True]
    assert await tier.snapshots() == []


async def test_a_document_is_written_once_and_of_two_writers_one_wins(tier: BucketTier, proxy: Proxy) -> None:
    proxy.faults.append(Fault("POST", "uploadType", lose_answer=True, times=2))
    assert await tier.documents.create("default/llama/2026-11-23_20-00", b"one")
    assert await tier.documents.create("default/llama/2026-11-23_20-00", b"one")
    assert not await tier.documents.create("default/llama/2026-11-23_20-00", b"other")
    assert await tier.documents.read("default/llama/2026-11-23_20-00") == b"one"
    await tier.collect(0)
    assert [document.name for document in await tier.documents.listed("default/llama/")] == [
        "default/llama/2026-11-23_20-00"
    ]
    removal = await tier.documents.remove(["default/llama/2026-11-23_20-00", "default/llama/never"])
    assert len(removal.removed) == 1
    assert await tier.documents.listed() == ()
    with pytest.raises(InvalidRequest, match="no name of a document"):
        await tier.documents.read("../fuse-tier.json")


KINDS: list[Callable[[random.Random], Fault]] = [
    lambda rng: Fault("POST", UPLOAD, status=rng.choice([429, 500, 502, 503])),
    lambda rng: Fault("POST", UPLOAD, cut_request_after=rng.randrange(1, 100_000)),
    lambda _: Fault("POST", UPLOAD, lose_answer=True),
    lambda _: Fault("POST", UPLOAD, change_request=True),
    lambda rng: Fault("POST", "/compose", status=rng.choice([429, 500, 503])),
    lambda _: Fault("POST", "/compose", lose_answer=True),
    lambda rng: Fault("POST", "/batch/", status=rng.choice([429, 500, 503])),
    lambda rng: Fault("POST", "/batch/", cut_answer_after=rng.randrange(200)),
    lambda _: Fault("POST", "/batch/", lose_answer=True),
    lambda rng: Fault("GET", DOWNLOAD, status=rng.choice([408, 429, 500, 503])),
    lambda rng: Fault("GET", DOWNLOAD, cut_answer_after=rng.randrange(100_000)),
    lambda rng: Fault("GET", DOWNLOAD, stall_answer_after=rng.randrange(100_000)),
    lambda rng: Fault("GET", DOWNLOAD, short_answer=rng.randrange(100_000)),
    lambda _: Fault("GET", DOWNLOAD, change_answer=True),
    lambda rng: Fault("GET", "/o?", status=rng.choice([429, 500, 503])),
    lambda rng: Fault("GET", "/o?", cut_answer_after=rng.randrange(300)),
]


async def storm(proxy: Proxy, rng: random.Random, rounds: int) -> None:
    """Backs up, restores, drops and collects while one request in six or so fails; nothing is lost or wrong."""
    tier = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=30)
    older: list[SnapshotId] = []
    for number in range(1, rounds + 1):
        proxy.faults[:] = [rng.choice(KINDS)(rng) for _ in range(12)]
        for fault in proxy.faults:
            fault.spares = rng.randrange(5)
        files = {"large": rng.randbytes(900_000), "kept": b"0" * 300_000}
        files |= {f"{index}": rng.randbytes(rng.randrange(3000)) for index in range(80)}
        manifest = await keep(tier, files, number)
        sink = MemoryBlobs()
        reader = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=30)
        assert await reader.manifest(manifest.id) == manifest
        fetched = await reader.fetch(manifest.blobs, sink)
        # An answer that is whole in itself but too short looks like an object that was cut: then another tier serves.
        assert all(isinstance(error, Damaged) for error in fetched.failed.values())
        assert sink.contents.items() <= holding(files.values()).contents.items()
        await reader.aclose()
        await tier.drop_all(older)
        await tier.collect(0)
        older = [manifest.id]
    proxy.faults.clear()
    await check_producible(tier)
    assert list(await tier.snapshots()) == older
    await tier.aclose()
    print("faults:", ", ".join(f"{kind}: {count}" for kind, count in sorted(proxy.befell.items())))  # noqa: T201


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs) -> None:
    """Little content has many parts and ranges, and pauses are short."""
    expected_logs.allow("bucket.pack.unreadable")  # two answers in a row that are too short look like damage
    monkeypatch.setattr(bucket_parts, "PART", 100_000)
    monkeypatch.setattr(bucket_parts, "SPLIT_FROM", 500_000)
    monkeypatch.setattr(bucket_fetch, "RANGE", 200_000)
    monkeypatch.setattr(bucket_download, "HEDGE_SECONDS", 0.1)
    monkeypatch.setattr(bucket_transfer, "FIRST_STALL_SECONDS", 0.1)
    monkeypatch.setattr(bucket_task, "_LONGEST_PAUSE", 0.1)


async def test_a_storm_of_faults_loses_nothing(proxy: Proxy, rng: random.Random, quick: None) -> None:
    await storm(proxy, rng, 3)


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_a_long_storm_of_faults_loses_nothing(proxy: Proxy, rng: random.Random, quick: None) -> None:
    await storm(proxy, rng, 60)
