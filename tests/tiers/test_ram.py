from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import Damaged, IncompleteSnapshot, NotFound, TierFull
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import encode
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.spares import LEAST_BYTES, Spares
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.tiers.ram import RamTier
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import GEMMA, LLAMA, check_producible, holding, keep, manifest_of
from tests.tiers.contract import TierContract


@pytest.fixture
def layout(memory_path: Path) -> Layout:
    layout = Layout(str(memory_path))
    create_directories(layout)
    return layout


@pytest.fixture
def tier(layout: Layout) -> RamTier:
    return RamTier(layout, "a")


def replace_content(layout: Layout, blob: Blob, content: bytes) -> None:
    path = Path(layout.blob(blob))
    path.unlink()
    path.write_bytes(content)


class TestRamTier(TierContract):
    announced = ("blob.damaged", "ram.manifests_unreadable")

    @pytest.fixture
    def tier(self, layout: Layout) -> Tier:
        self.layout = layout
        return RamTier(layout, "a")

    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        replace_content(self.layout, blob, content)

    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        Path(self.layout.manifest(snapshot)).write_bytes(text)


def names_below(directory: str) -> list[str]:
    return [name for _, _, names in os.walk(directory) for name in names]


async def test_nothing_is_left_over_by_what_succeeded_or_failed(layout: Layout, tier: RamTier) -> None:
    await keep(tier, {"weights": b"0123"})
    source = MemoryBlobs()
    source.contents = {hash_bytes(b"4567"): b"456X"}
    with pytest.raises(Damaged):
        await tier.store(source.contents.keys(), source)
    with pytest.raises(IncompleteSnapshot):
        await tier.commit(manifest_of({"weights": b"4567"}, 2))
    assert names_below(layout.incoming) == []
    assert names_below(layout.blobs) == [hash_bytes(b"0123").name]


async def test_a_blob_is_for_its_owner_alone_and_cannot_be_written_through_its_source(
    layout: Layout, tier: RamTier
) -> None:
    blob = hash_bytes(b"0123")
    await tier.store([blob], holding([b"0123"]))
    assert os.stat(layout.blob(blob)).st_mode & 0o777 == 0o600
    fd = tier.open(blob)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
    finally:
        os.close(fd)


async def test_the_room_for_a_blob_is_there_before_its_first_byte(tier: RamTier) -> None:
    incoming = tier.create(Blob(bytes(16), 1 << 20))
    assert os.fstat(incoming.fd).st_blocks * 512 >= 1 << 20
    incoming.discard()


async def test_a_large_blob_lands_in_pages_that_were_made_ready(layout: Layout, tier: RamTier) -> None:
    content = os.urandom(LEAST_BYTES)
    with Spares(layout).begin(LEAST_BYTES) as spare:
        spare.fill(0, LEAST_BYTES)
        assert spare.finish()
    (ready,) = os.scandir(layout.spares)
    blob = hash_bytes(content)
    await tier.store([blob], holding([content]))
    assert os.stat(layout.blob(blob)).st_ino == ready.inode()
    assert Path(layout.blob(blob)).read_bytes() == content
    assert (names_below(layout.spares), names_below(layout.incoming)) == ([], [])


async def test_content_for_which_nothing_was_made_lands_in_memory_that_was_kept(
    layout: Layout, tier: RamTier
) -> None:
    spares = Spares(layout)
    for _ in range(2):
        with spares.begin_piece() as piece:
            assert piece.finish()
    incoming = tier.create(Blob(bytes(16), 1 << 20))
    assert spares.pieces() == 1
    incoming.discard()


async def test_a_blob_without_room_is_refused_and_leaves_nothing(layout: Layout, tier: RamTier) -> None:
    with pytest.raises(TierFull, match="ram of a is full"):
        tier.create(Blob(bytes(16), 1 << 62))
    assert names_below(layout.incoming) == []


async def test_a_blob_that_is_here_already_keeps_its_file(layout: Layout, tier: RamTier) -> None:
    blob = hash_bytes(b"0123")
    await tier.store([blob], holding([b"0123"]))
    before = os.stat(layout.blob(blob)).st_ino
    incoming = tier.create(blob)
    os.write(incoming.fd, b"0123")
    incoming.accept()
    assert os.stat(layout.blob(blob)).st_ino == before


async def test_a_blob_of_the_wrong_size_counts_as_missing_and_is_mended_by_storing_it(
    layout: Layout, tier: RamTier, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("blob.damaged")
    blob = hash_bytes(b"0123")
    await tier.store([blob], holding([b"0123"]))
    replace_content(layout, blob, b"01")
    assert await tier.missing([blob]) == {blob}
    with pytest.raises(Damaged, match="has 2 bytes"):
        tier.open(blob)
    with pytest.raises(IncompleteSnapshot):
        await tier.commit(manifest_of({"weights": b"0123"}))
    await tier.store([blob], holding([b"0123"]))
    await tier.commit(manifest_of({"weights": b"0123"}))
    await check_producible(tier)


async def test_a_link_in_the_place_of_a_blob_is_not_followed(layout: Layout, tier: RamTier, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"0123")
    blob = hash_bytes(b"0123")
    os.symlink(tmp_path / "secret", layout.blob(blob))
    fetched = await tier.fetch([blob], MemoryBlobs())
    assert list(fetched.failed) == [blob]


async def test_what_is_no_snapshot_is_not_listed(layout: Layout, tier: RamTier) -> None:
    manifest = await keep(tier, {}, 7)
    directory = Path(layout.snapshots(LLAMA))
    for name in ("0", "07", "-1", "seven", "7.tmp", "9" * 19, "9" * 40):
        (directory / name).write_bytes(encode(manifest))
    (directory.parent.parent / "lost+found").mkdir()
    (directory.parent.parent / "file").write_bytes(b"")
    (Path(layout.manifests) / "..odd").mkdir()
    assert list(await tier.snapshots()) == [manifest.id]
    assert list(await tier.snapshots(LLAMA)) == [manifest.id]


async def test_listing_reads_names_only_and_a_damaged_manifest_is_told_when_it_is_asked_for(
    layout: Layout, tier: RamTier
) -> None:
    manifest = await keep(tier, {})
    Path(layout.manifest(manifest.id)).write_bytes(b"nonsense")
    assert list(await tier.snapshots()) == [manifest.id]


async def test_an_unreadable_manifest_keeps_no_content_and_is_told_loudly(
    layout: Layout, tier: RamTier, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("ram.manifests_unreadable")
    manifest = await keep(tier, {"weights": b"0123"})
    await keep(tier, {"weights": b"4567"}, 1, GEMMA)
    Path(layout.manifest(manifest.id)).write_bytes(b"nonsense")
    assert await tier.collect(0) == 4
    assert await tier.missing([hash_bytes(b"0123"), hash_bytes(b"4567")]) == {hash_bytes(b"0123")}


async def test_collecting_goes_by_the_age_of_the_file(layout: Layout, tier: RamTier) -> None:
    blob = hash_bytes(b"0123")
    await tier.store([blob], holding([b"0123"]))
    os.utime(layout.blob(blob), (0, 0))  # a restored file has the times of long ago
    assert await tier.collect(60) == 0
    assert await tier.missing([blob]) == set()
    deadline = time.monotonic() + 10
    unexpecting = RamTier(layout, "a")  # the other one was asked what it lacks, and expects that to come
    while await unexpecting.collect(0.05) == 0:
        assert time.monotonic() < deadline
        await trio.lowlevel.checkpoint()
    assert await tier.missing([blob]) == {blob}


async def test_content_that_a_live_file_shares_frees_no_memory(layout: Layout, tier: RamTier) -> None:
    blob = hash_bytes(b"0123")
    await tier.store([blob], holding([b"0123"]))
    live = Path(layout.root) / "live"
    os.link(layout.blob(blob), live)
    assert await tier.collect(0) == 0
    assert await tier.missing([blob]) == {blob}
    assert live.read_bytes() == b"0123"


async def test_a_damaged_manifest_gives_way_to_the_intact_one(
    layout: Layout, tier: RamTier, expected_logs: ExpectedLogs
) -> None:
    manifest = await keep(tier, {"a": b"a"})
    Path(layout.manifest(manifest.id)).write_bytes(b"nonsense")
    expected_logs.allow("ram.manifest_replaced")
    await tier.commit(manifest)
    assert await tier.manifest(manifest.id) == manifest


async def test_content_that_comes_slowly_is_spared_until_its_manifest_comes(tier: RamTier) -> None:
    manifest = manifest_of({"first": b"first", "second": b"second"})
    assert await tier.missing(manifest.blobs) == manifest.blobs
    for content in (b"first", b"second"):
        source = holding([content])
        await tier.store(source.contents, source)
        await trio.sleep(0.05)
        assert await tier.collect(0.04) == 0  # a grace that is over
    await tier.commit(manifest)
    assert await tier.collect(0) == 0


async def test_content_of_an_unfinished_snapshot_is_spared_however_long_it_takes(tier: RamTier) -> None:
    content = holding([b"sealed"])
    with tier.unfinished():
        await tier.store(content.contents, content)
        await trio.sleep(0.05)
        assert await tier.collect(0.01) == 0
    await trio.sleep(0.05)
    assert await tier.collect(0.01) > 0


async def test_collecting_leaves_alone_what_is_no_blob(layout: Layout, tier: RamTier) -> None:
    stray = Path(layout.blobs) / "00" / "README"
    stray.write_bytes(b"hello")
    assert await tier.collect(0) == 0
    assert stray.exists()


async def test_directories_of_volumes_without_snapshots_go_away(layout: Layout, tier: RamTier) -> None:
    manifest = await keep(tier, {})
    kept = await keep(tier, {}, 1, GEMMA)
    await tier.drop(manifest.id)
    await tier.collect(0)
    assert not Path(layout.snapshots(LLAMA)).parent.exists()
    assert list(await tier.snapshots()) == [kept.id]
    await keep(tier, {}, 2)
    assert SnapshotId(LLAMA, 2) in await tier.snapshots()


async def test_what_a_worker_left_half_done_is_removed_at_the_start_of_the_next(
    layout: Layout, tier: RamTier
) -> None:
    tier.create(Blob(bytes(16), 1000))
    (Path(layout.incoming) / "link").symlink_to("nowhere")
    (Path(layout.incoming) / "tree" / "closed").mkdir(parents=True)
    (Path(layout.incoming) / "tree" / "closed" / "weights").write_bytes(b"0123")
    (Path(layout.incoming) / "tree" / "closed").chmod(0)
    (Path(layout.incoming) / "tree").chmod(0)
    tier.clear_incoming()
    assert os.listdir(layout.incoming) == []


async def test_room_and_its_use_are_told(tier: RamTier) -> None:
    before = tier.free_bytes()
    assert 0 < before <= tier.capacity_bytes()


async def test_verify_finds_all_good(tier: RamTier) -> None:
    await keep(tier, {"weights": b"0123", "same": b"0123", "optimizer": b"4567890"}, 1)
    await keep(tier, {"weights": b"0123"}, 2)
    await keep(tier, {"weights": b"gemma"}, 1, GEMMA)
    moved: list[int] = []
    report = await tier.verify(None, moved.append)
    assert (report.snapshots, report.blobs, report.bytes, report.damaged) == (3, 3, 16, ())
    assert sum(moved) == 16
    assert (await tier.verify(GEMMA)).bytes == 5


async def test_verify_tells_each_file_that_is_damaged_and_why(
    layout: Layout, tier: RamTier, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("blob.damaged")
    await keep(tier, {"changed": b"0123", "short": b"4567", "gone": b"89ab", "fine": b"cdef"})
    broken = await keep(tier, {}, 2)
    replace_content(layout, hash_bytes(b"0123"), b"012X")
    replace_content(layout, hash_bytes(b"4567"), b"4")
    tier.remove(hash_bytes(b"89ab"))
    Path(layout.manifest(broken.id)).write_bytes(b"nonsense")
    report = await tier.verify()
    assert report.snapshots == 1
    told = {line.split(": ")[0] + " " + line.split(": ")[1] for line in report.damaged[:3]}
    assert told == {f"{SnapshotId(LLAMA, 1)} {name}" for name in ("changed", "short", "gone")}
    assert report.damaged[3].startswith(f"{broken.id}: ")


async def test_a_job_that_writes_while_its_content_is_copied_is_not_taken_for_damage(
    layout: Layout, tier: RamTier
) -> None:
    blob = hash_bytes(b"0123")
    await tier.store([blob], holding([b"0123"]))
    live = Path(layout.root) / "live"
    os.link(layout.blob(blob), live)

    class Torn:
        """The blob becomes a copy, and the live file is written, just after the blob was opened for reading."""

        opened = 0

        def open(self, blob: Blob) -> int:
            fd = tier.open(blob)
            if self.opened == 0:
                replace_content(layout, blob, b"0123")
                live.write_bytes(b"4567")
            self.opened += 1
            return fd

    source = Torn()
    other = Layout(str(Path(layout.root) / "other"))
    create_directories(other)
    sink = RamTier(other, "b")
    await sink.store([blob], source)
    assert source.opened == 2
    assert await sink.missing([blob]) == set()


async def test_ten_thousand_small_files_are_kept_listed_and_collected(tier: RamTier) -> None:
    files = {f"file{number:05d}": b"%d" % number for number in range(10_000)}
    manifest = await keep(tier, files)
    assert await tier.missing(manifest.blobs) == set()
    assert await tier.manifest(manifest.id) == manifest
    await tier.drop(manifest.id)
    assert await tier.collect(0) == sum(len(content) for content in files.values())
    with pytest.raises(NotFound):
        await tier.manifest(manifest.id)


async def test_a_damaged_manifest_gives_way_to_the_one_that_is_committed(layout: Layout, tier: RamTier) -> None:
    manifest = await keep(tier, {"weights": b"0123"})
    path = Path(layout.manifest(manifest.id))
    path.write_bytes(path.read_bytes()[:-7])
    await tier.commit(manifest)
    assert await tier.manifest(manifest.id) == manifest
    assert names_below(layout.incoming) == []
