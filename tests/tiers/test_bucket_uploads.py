"""How content gets into a bucket: in parts, once in a cluster, read once, and on from where it was cut."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from threading import Event

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.blobs import Blob
from fuse_tier.config import load_node_config
from fuse_tier.emulator import Emulator
from fuse_tier.errors import Damaged, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers import bucket, bucket_claims, bucket_parts
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_content import MappedContent, MemoryContent, UploadBody
from fuse_tier.tiers.bucket_pace import Pace
from fuse_tier.tiers.bucket_packs import SMALL, divide
from fuse_tier.tiers.bucket_parts import PART, SPLIT_FROM, Piece, levels, to_split
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.snapshots import cancel_after, check_producible, holding, keep
from tests.tiers.conftest import Open
from tests.tiers.faulty_http import Fault, Proxy

MIB = 1 << 20


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of so many bytes, so that little content has many of them."""
    monkeypatch.setattr(bucket_parts, "PART", 64 << 10)
    monkeypatch.setattr(bucket_parts, "SPLIT_FROM", 1)
    return 64 << 10


@pytest.fixture
def large_from_7_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Content of 8 MiB goes in parts."""
    monkeypatch.setattr(bucket_parts, "PART", MIB)
    monkeypatch.setattr(bucket_parts, "SPLIT_FROM", 7 * MIB)


def names(tier: BucketTier, folder: str) -> list[str]:
    return [stored.name for stored in tier._objects.listed(folder, Event())]


async def fetched(tier: BucketTier, blob: Blob) -> bytes:
    sink = MemoryBlobs()
    await tier.fetch([blob], sink)
    return sink.contents[blob]


@given(st.lists(st.integers(0, 1 << 38), max_size=30), st.integers(1, 16))
def test_what_would_be_under_way_alone_goes_in_parts(sizes: list[int], parallel: int) -> None:
    blobs = [Blob(number.to_bytes(16, "big"), size) for number, size in enumerate(sizes)]
    split = to_split(blobs, parallel)
    assert all(blob.size >= SPLIT_FROM for blob in split)
    whole = [blob for blob in blobs if blob not in split]
    assert all(blob.size <= max(SPLIT_FROM, sum(sizes) / parallel) for blob in whole)


def test_eight_files_of_one_size_go_whole_and_seven_in_parts() -> None:
    blobs = [Blob(bytes([number] * 16), 128 * MIB) for number in range(8)]
    assert to_split(blobs, 8) == set()
    assert to_split(blobs[1:], 8) == set(blobs[1:])


@given(st.integers(1, 1 << 36))
def test_levels_compose_the_whole_of_no_more_than_32_pieces_each(size: int) -> None:
    known = {Piece(start, min(start + PART, size)) for start in range(0, size, PART)}
    *lower, last = levels(size)
    for level in (*lower, last):
        for made, group in level:
            assert 1 <= len(group) <= 32
            assert known.issuperset(group)
            assert [made.start, *(piece.end for piece in group)] == [*(piece.start for piece in group), made.end]
        known |= {made for made, _ in level}
    assert [made for made, _ in last] == [Piece(0, size)]
    assert all(len(group) > 1 for level in lower for _, group in level)


@pytest.mark.parametrize("count", [1, 5, 33, 70])
async def test_large_content_goes_in_parts_of_which_nothing_is_left(
    opened: Open, small_parts: int, rng: random.Random, count: int
) -> None:
    tier, content = opened(), rng.randbytes(small_parts * count - 17)
    moved: list[int] = []
    await tier.store([hash_bytes(content)], holding([content]), moved.append)
    assert sum(moved) == len(content)
    assert await fetched(opened(), hash_bytes(content)) == content
    assert names(tier, "parts/") == names(tier, "claims/") == []


async def test_what_breaks_goes_on_in_parts_and_each_further_break_costs_one_part(
    opened: Open, proxy: Proxy, rng: random.Random
) -> None:
    tier, content = opened(), rng.randbytes(3 * PART)
    await keep(tier, {})
    before = proxy.sent
    proxy.faults += [
        Fault("POST", "/upload/", cut_request_after=PART),
        Fault("POST", "/upload/", cut_request_after=PART // 2),
        Fault("POST", "/upload/", lose_answer=True),
        Fault("POST", "/compose", status=503),
        Fault("POST", "/compose", lose_answer=True),
    ]
    moved: list[int] = []
    await tier.store([hash_bytes(content)], holding([content]), moved.append)
    assert [fault.times for fault in proxy.faults] == [0] * 5
    assert sum(moved) == len(content)
    assert proxy.sent - before < len(content) * 2 + 2 * PART + MIB
    assert await fetched(opened(), hash_bytes(content)) == content
    assert names(tier, "parts/") == []


async def test_a_process_that_dies_leaves_parts_that_the_next_one_uses(
    opened: Open, proxy: Proxy, small_parts: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_claims, "STALE_SECONDS", 0.0)
    content = rng.randbytes(small_parts * 40)
    async with trio.open_nursery() as nursery:
        first = opened()
        nursery.start_soon(first.store, [hash_bytes(content)], holding([content]))
        while len(proxy.requests) < 30:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    there = len(names(first, "parts/"))
    assert there > 8
    before = proxy.sent
    await opened().store([hash_bytes(content)], holding([content]))
    assert proxy.sent - before < (40 - there) * small_parts + MIB // 2
    assert await fetched(opened(), hash_bytes(content)) == content


@pytest.mark.usefixtures("large_from_7_mib")
@pytest.mark.parametrize("size", [100_000, 6 * MIB, 8 * MIB + 5])
async def test_content_is_read_from_its_source_once(opened: Open, emulator: Emulator, size: int) -> None:
    content = random.Random(size).randbytes(size)
    blob, source = hash_bytes(content), holding([content])
    tier = BucketTier("gs://checkpoints/a", emulator.endpoint)
    await keep(tier, {})

    def bytes_read() -> int:  # by this process, out of files
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    await tier.store([blob], source)
    assert bytes_read() - before < size + 200_000
    await tier.aclose()


class Wrong(MemoryBlobs):
    """Has one content for all names, of whatever size."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._blob = hash_bytes(content)
        self.contents = {self._blob: content}

    def open(self, blob: Blob) -> int:
        return super().open(self._blob)


@pytest.mark.usefixtures("large_from_7_mib")
@pytest.mark.parametrize("size", [6 * MIB, 6 * MIB + 1, 8 * MIB])
async def test_large_content_that_is_not_what_its_name_says_never_gets_the_name(
    opened: Open, size: int, rng: random.Random
) -> None:
    tier, content = opened(), rng.randbytes(size)
    blob = hash_bytes(content)
    for wrong in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], content + b"x"):
        with pytest.raises(Damaged, match="in place of"):
            await tier.store([blob], Wrong(wrong))
        assert names(tier, "blobs/") == []
    assert await opened().missing([blob]) == {blob}


@pytest.mark.usefixtures("large_from_7_mib")
@pytest.mark.parametrize("size", [1000, 6 * MIB, 8 * MIB])
async def test_a_file_that_a_job_writes_to_is_looked_for_a_second_time(
    opened: Open, size: int, rng: random.Random
) -> None:
    content = rng.randbytes(size)
    blob = hash_bytes(content)

    class Changing(MemoryBlobs):
        def open(self, blob: Blob) -> int:
            fd = super().open(blob)
            self.contents = {blob: content}
            return fd

    source = Changing()
    source.contents = {blob: bytes(size)}
    await opened().store([blob], source)
    assert await fetched(opened(), blob) == content


async def test_two_nodes_that_have_the_same_upload_each_content_once(
    opened: Open, proxy: Proxy, rng: random.Random
) -> None:
    files = {f"large-{number}": rng.randbytes(2 * MIB) for number in range(6)}
    files |= {f"small-{number}": rng.randbytes(20_000) for number in range(300)}
    nodes = [opened() for _ in range(3)]
    for node in nodes:
        await node.missing([])
    moved = [0] * 3

    async def back_up(number: int) -> None:
        blobs = [hash_bytes(content) for content in files.values()]

        def count(size: int) -> None:
            moved[number] += size

        await nodes[number].store(blobs, holding(files.values()), count)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(back_up, number)
    total = sum(len(content) for content in files.values())
    packs = divide({hash_bytes(content) for name, content in files.items() if name.startswith("small")})
    unclaimed = sum(size for pack in packs if (size := sum(blob.size for blob in pack)) < SMALL)
    assert total <= sum(moved) <= total + 2 * unclaimed
    assert proxy.sent < (total + 2 * unclaimed) * 1.1
    for node in nodes:
        assert await node.missing([hash_bytes(content) for content in files.values()]) == set()
    assert names(nodes[0], "claims/") == []


async def test_what_a_node_claimed_and_never_uploaded_is_uploaded_by_another(
    opened: Open, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_claims, "STALE_SECONDS", 0.2)
    content = rng.randbytes(2 * MIB)
    gone = opened()
    await keep(gone, {})
    claims = bucket_claims.Claims(gone._objects, gone._work)
    assert await claims.take(hash_bytes(content)) is not None
    assert await claims.take(hash_bytes(content)) is None
    await opened().store([hash_bytes(content)], holding([content]))
    assert await fetched(opened(), hash_bytes(content)) == content
    assert names(gone, "claims/") == []


async def test_a_claim_that_was_left_and_that_the_bucket_keeps_stops_nobody(
    opened: Open, proxy: Proxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_claims, "STALE_SECONDS", 0.2)
    proxy.protected = {"claims/": "Object is subject to bucket's retention policy until 2027-01-01."}
    content = rng.randbytes(2 * MIB)
    gone = opened()
    await keep(gone, {})
    assert await bucket_claims.Claims(gone._objects, gone._work).take(hash_bytes(content)) is not None
    with trio.fail_after(20):
        await opened().store([hash_bytes(content)], holding([content]))
    assert await fetched(opened(), hash_bytes(content)) == content


async def test_where_too_many_claim_the_same_it_goes_up_all_the_same(
    opened: Open, proxy: Proxy, rng: random.Random
) -> None:
    tier, content = opened(), rng.randbytes(2 * MIB)
    await keep(tier, {})
    proxy.faults.append(Fault("POST", "/upload/", status=429))
    await tier.store([hash_bytes(content)], holding([content]))
    assert await fetched(tier, hash_bytes(content)) == content


async def test_a_claim_whose_answer_was_lost_is_known_as_ours(opened: Open, proxy: Proxy, rng: random.Random) -> None:
    tier, content = opened(), rng.randbytes(2 * MIB)
    await keep(tier, {})
    proxy.faults.append(Fault("POST", "/upload/", lose_answer=True))
    await tier.store([hash_bytes(content)], holding([content]))
    assert await fetched(tier, hash_bytes(content)) == content


async def test_parts_of_a_running_upload_are_not_garbage_and_those_of_a_dead_one_are(
    opened: Open, proxy: Proxy, small_parts: int, rng: random.Random
) -> None:
    tier, content = opened(), rng.randbytes(small_parts * 20)
    await keep(tier, {})
    ended: list[bool] = []
    ended.append(await cancel_after(2000, lambda: tier.store([hash_bytes(content)], holding([content]))))
    collector = opened()
    parts = names(tier, "parts/")
    await collector.collect(3600)
    assert names(tier, "parts/") == parts
    await collector.collect(0)
    assert names(tier, "parts/") == names(tier, "claims/") == []


def test_a_body_that_is_sent_again_begins_at_its_start_however_far_it_had_come(rng: random.Random) -> None:
    content = rng.randbytes(3 * MIB)
    body = UploadBody(b"{}", MemoryContent(content), lambda _: None, lambda *_: None, Event())
    next(first := iter(body))
    next(first)
    sent = b"".join(body)
    assert len(sent) == len(body)
    assert content in sent


class Waits(Event):
    """Notes how long somebody would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def test_uploads_keep_to_their_bandwidth_whoever_makes_them() -> None:
    pace, waits = Pace(bytes_per_second=1e6), Waits()
    for _ in range(10):
        pace.wait(1_000_000, waits)
    assert 9 < waits.seconds[-1] < 11
    assert waits.seconds == sorted(waits.seconds)


def test_uploads_keep_to_their_share_of_the_processors() -> None:
    pace, waits = Pace(processors=0.001), Waits()
    pace.wait(1, waits)
    hash_bytes(bytes(20 * MIB))
    pace.wait(1, waits)
    assert waits.seconds


def test_the_limits_of_a_node_hold_for_its_uploads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[float | None, float | None]] = []

    def make(bytes_per_second: float | None = None, processors: float | None = None) -> Pace:
        made.append((bytes_per_second, processors))
        return Pace(bytes_per_second, processors)

    monkeypatch.setattr(bucket, "Pace", make)
    path = tmp_path / "node.yaml"
    path.write_text(
        "{node: a, ram: {path: ram, size: 1GiB}, socket: s, listen: {control: 127.0.0.1:1, bulk: 127.0.0.1:2}, "
        "bucket: {url: gs://checkpoints}, limits: {bucket: 80Mbps, bucketCpu: 0.5}}"
    )
    bucket.bucket_of(load_node_config(path))
    assert made == [(10e6, 0.5)]


def test_without_limits_nobody_waits() -> None:
    pace, waits = Pace(), Waits()
    pace.wait(1 << 40, waits)
    assert waits.seconds == []


async def test_an_upload_that_stays_broken_is_unavailable(opened: Open, proxy: Proxy, rng: random.Random) -> None:
    tier, content = BucketTier("gs://checkpoints/a", proxy.endpoint, patience=0.3), rng.randbytes(3 * PART)
    await keep(tier, {})
    proxy.faults.append(Fault("POST", "/upload/", cut_request_after=MIB, times=10_000))
    with pytest.raises(TierUnavailable):
        await tier.store([hash_bytes(content)], holding([content]))
    await tier.aclose()
    proxy.faults.clear()
    await check_producible(opened())


async def test_content_that_was_sent_is_let_go_at_once(opened: Open, small_parts: int, rng: random.Random) -> None:
    large, small = rng.randbytes(small_parts * 10), [rng.randbytes(2000) for _ in range(100)]
    tier = opened()
    await keep(tier, {})
    gc.collect()
    gc.disable()
    try:
        blobs = [hash_bytes(content) for content in (large, *small)]
        await tier.store(blobs, holding([large, *small]))
        kept = [thing for thing in gc.get_objects() if isinstance(thing, MappedContent | MemoryContent)]
    finally:
        gc.enable()
    assert all(content.size < 100 for content in kept)  # what claims are made of
