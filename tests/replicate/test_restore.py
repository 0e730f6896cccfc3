from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.errors import NotFound, RunMismatch, TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage, Manifest
from fuse_tier.members import Domain, LocalFacts, Location, Member
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.by_peers import PeerMembership
from fuse_tier.replicate.choice import Chooser
from fuse_tier.replicate.directory import into_directory
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.own import OwnNode
from fuse_tier.replicate.places import PeerConnection, Places
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.returning import bring_back
from fuse_tier.replicate.volume import Volume, VolumeOptions
from fuse_tier.tiers.base import Fetched, Tier, TierName
from fuse_tier.tiers.memory import MemoryTier
from fuse_tier.tiers.ram import RamTier
from tests.harness.logs import ExpectedLogs
from tests.harness.unreadable import Unreadable
from tests.harness.unreadable import unreadable as unreadable
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench
from tests.replicate.test_tree import describe


class Node:
    """A node without files, and a bucket (in memory) beside it."""

    def __init__(self, root: Path, bucket: Tier) -> None:
        root.mkdir()
        self.layout = Layout(str(root))
        create_directories(self.layout)
        self.ram = RamTier(self.layout, "c")
        own = OwnNode("c", "1", "default", "127.0.0.1:1", "127.0.0.1:2", Domain(), no_facts, None)
        self.places = Places(self.ram, PeerMembership(own, ()), bucket, no_peers)
        self.chooser = Chooser(self.places)
        self.fetcher = Fetcher(self.places, "c")
        self.restorer = Restorer(self.layout, self.ram, self.fetcher, trio.CapacityLimiter(2))
        options = VolumeOptions("c", 0.05, 1)
        self.volume = Volume(IDENTITY, self.ram, self.layout, options, trio.CapacityLimiter(2))

    @property
    def tree(self) -> Path:
        return Path(self.volume.layout.tree)

    async def restore(self, lineage: Lineage = LINEAGE, number: int = 0) -> Manifest | None:
        await self.volume.load()
        chosen = await self.chooser.choose(IDENTITY, lineage, number)
        if not self.restorer.is_current(self.volume, lineage, chosen):
            await self.restorer.into_volume(self.volume, chosen, lineage)
        return chosen.manifest


def no_facts() -> LocalFacts:
    raise AssertionError("nobody reports here")


async def there_is_room(size: int) -> int:
    await trio.lowlevel.checkpoint()
    return size


def no_peers(member: Member) -> PeerConnection:
    raise AssertionError("there are no peers here")


@pytest.fixture
def bucket() -> MemoryTier:
    return MemoryTier(TierName.BUCKET)


@pytest.fixture
def node(bucket: MemoryTier) -> Iterator[Node]:
    root = Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}")  # noqa: S108 - a tmpfs that everybody may use
    try:
        yield Node(root, bucket)
    finally:
        shutil.rmtree(root)


async def save(bench: Bench, bucket: Tier, files: dict[str, bytes], number: int = 1) -> Manifest:
    """Writes files and brings a snapshot of them into the bucket."""
    for name, content in files.items():
        path = bench.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            bench.volume.pins.detach(path.stat().st_ino)
        path.write_bytes(content)
    taken = await bench.snapshot(number, None)
    await bucket.store(taken.blobs, bench.ram)
    await bucket.commit(taken)
    return taken


async def test_a_volume_comes_back_from_the_bucket_as_it_was(bench: Bench, bucket: MemoryTier, node: Node) -> None:
    await save(bench, bucket, {"step_1/model": b"m" * 100_000, "step_1/same": b"m" * 100_000, "marker": b""})
    before = describe(bench.tree)
    await node.restore()
    assert describe(node.tree) == before
    assert [snapshot.number for snapshot in await node.ram.snapshots(IDENTITY)] == [1]


async def test_restored_files_share_memory_with_their_blobs_but_never_with_each_other(
    bench: Bench, bucket: MemoryTier, node: Node
) -> None:
    await save(bench, bucket, {"a": b"x" * 5000, "b": b"x" * 5000, "c": b"y"})
    await node.restore()
    assert len({(node.tree / name).stat().st_ino for name in "abc"}) == 3
    assert node.volume.pins.shares_inode((node.tree / "c").stat().st_ino)


async def test_a_restored_volume_needs_no_new_snapshot(bench: Bench, bucket: MemoryTier, node: Node) -> None:
    await save(bench, bucket, {"a": b"x" * 5000, "d/b": b"y"})
    restored = await node.restore()
    assert await node.volume.take_snapshot() == restored


async def test_a_live_tree_that_is_newest_is_left_alone(bench: Bench, bucket: MemoryTier, node: Node) -> None:
    await save(bench, bucket, {"a": b"x"})
    await node.restore()
    (node.tree / "unsealed").write_bytes(b"not in any snapshot")
    await node.restore()
    assert (node.tree / "unsealed").exists()


async def test_a_live_tree_that_another_node_went_beyond_gives_way(
    bench: Bench, bucket: MemoryTier, node: Node
) -> None:
    await save(bench, bucket, {"a": b"old"})
    await node.restore()
    await save(bench, bucket, {"a": b"new"}, 2)
    await node.restore()
    assert (node.tree / "a").read_bytes() == b"new"


async def test_damaged_content_of_the_own_ram_is_fetched_from_elsewhere(
    bench: Bench, bucket: MemoryTier, node: Node, expected_logs: ExpectedLogs
) -> None:
    taken = await save(bench, bucket, {"a": b"right"})
    await node.restore()
    (blob,) = taken.blobs
    Path(node.layout.blob(blob)).write_bytes(b"wrong")
    shutil.rmtree(node.tree)
    expected_logs.allow("ram.content_damaged")
    await node.restore()
    assert (node.tree / "a").read_bytes() == b"right"


@pytest.mark.fuse
async def test_content_of_the_own_ram_that_cannot_be_read_is_fetched_from_elsewhere(
    bench: Bench,
    bucket: MemoryTier,
    node: Node,
    expected_logs: ExpectedLogs,
    unreadable: Unreadable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = unreadable.content(5000)
    await save(bench, bucket, {"a": content, "b": b"right"})
    await node.restore()
    unreadable.lose(node.layout, 5000, monkeypatch)
    shutil.rmtree(node.tree)
    expected_logs.allow("ram.content_damaged")
    await node.restore()
    assert (node.tree / "a").read_bytes() == content


class Lossy(MemoryTier):
    """A bucket that gives some content damaged, or not at all for now."""

    def __init__(self) -> None:
        super().__init__(TierName.BUCKET)
        self.refuses: dict[Blob, Exception] = {}
        self.silent = False
        self.cut_off = False

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = lambda moved: None) -> Fetched:
        fetched = await super().fetch([blob for blob in blobs if blob not in self.refuses], sink, progress)
        failed = {blob: self.refuses[blob] for blob in blobs if blob in self.refuses}
        return replace(fetched, failed=failed)  # type: ignore[arg-type]

    async def snapshots(self, identity: object = None) -> list[SnapshotId]:
        if self.silent:
            raise TierUnavailable("the bucket is down")
        return list(await super().snapshots(identity))  # type: ignore[arg-type]

    async def manifest(self, snapshot: SnapshotId) -> Manifest:
        if self.cut_off:
            raise TierUnavailable("reset")
        return await super().manifest(snapshot)


async def test_content_that_is_lost_everywhere_costs_that_file_alone(
    bench: Bench, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    lossy = Lossy()
    taken = await save(bench, lossy, {"good": b"good", "bad": b"bad"})
    bad = next(entry.blob for entry in taken.entries if entry.path == b"bad")
    assert bad is not None
    lossy.refuses[bad] = NotFound("it was deleted")
    node = Node(Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}"), lossy)  # noqa: S108
    try:
        expected_logs.allow("restore.file_lost", "restore.content_lost")
        restored = await node.restore()
        assert (node.tree / "good").read_bytes() == b"good"
        inode = (node.tree / "bad").stat().st_ino
        assert node.volume.is_remote(inode)
        with pytest.raises(NotFound):
            await bring_back(node.fetcher, node.ram, node.volume, inode, there_is_room)
        assert await node.volume.take_snapshot() == restored  # the loss alone is no new state

        (node.tree / "new").write_bytes(b"new")
        snapshot = await node.volume.take_snapshot()
        assert snapshot is not None
        assert [entry.path for entry in snapshot.entries] == [b"", b"good", b"new"]
        assert 1 in node.volume.in_use  # what names the lost file is not given up

        del lossy.refuses[bad]
        await bring_back(node.fetcher, node.ram, node.volume, inode, there_is_room)
        assert (node.tree / "bad").read_bytes() == b"bad"
        assert not node.volume.is_remote(inode)
        assert (node.tree / "bad").stat().st_nlink == 1
    finally:
        shutil.rmtree(node.layout.root)


async def test_content_that_may_come_later_fails_the_restore_and_changes_nothing(bench: Bench) -> None:
    lossy = Lossy()
    taken = await save(bench, lossy, {"a": b"a", "b": b"b"})
    lossy.refuses = {next(iter(taken.blobs)): TierUnavailable("reset")}
    node = Node(Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}"), lossy)  # noqa: S108
    try:
        with pytest.raises(TierUnavailable, match="1 files could not be had"):
            await node.restore()
        assert not node.tree.exists()
    finally:
        shutil.rmtree(node.layout.root)


async def test_a_volume_is_not_begun_empty_because_the_bucket_is_silent(
    bench: Bench, expected_logs: ExpectedLogs
) -> None:
    lossy = Lossy()
    await save(bench, lossy, {"a": b"a"})
    lossy.silent = True
    node = Node(Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}"), lossy)  # noqa: S108
    try:
        expected_logs.allow("restore.place_silent")
        with pytest.raises(TierUnavailable, match="beginning empty could lose"):
            await node.restore()
    finally:
        shutil.rmtree(node.layout.root)


async def test_going_back_to_an_older_snapshot_makes_it_the_newest(
    bench: Bench, bucket: MemoryTier, node: Node
) -> None:
    await save(bench, bucket, {"a": b"old"})
    await save(bench, bucket, {"a": b"new"}, 2)
    await node.restore(number=1)
    assert (node.tree / "a").read_bytes() == b"old"
    taken = await node.volume.take_snapshot()
    assert taken is not None
    assert taken.id.number == 3
    await node.restore()
    assert (node.tree / "a").read_bytes() == b"old"


async def test_a_damaged_manifest_of_the_own_ram_is_no_obstacle(
    bench: Bench, bucket: MemoryTier, node: Node, expected_logs: ExpectedLogs
) -> None:
    taken = await save(bench, bucket, {"a": b"right"})
    await node.restore()
    Path(node.layout.manifest(taken.id)).write_bytes(b"nonsense")
    shutil.rmtree(node.tree)
    expected_logs.allow("restore.manifest_unreadable")
    await node.restore()
    assert (node.tree / "a").read_bytes() == b"right"
    assert await node.ram.manifest(taken.id) == taken


async def test_a_snapshot_that_cannot_be_restored_is_refused_with_the_reason(
    bench: Bench, bucket: MemoryTier, node: Node, expected_logs: ExpectedLogs
) -> None:
    taken = await save(bench, bucket, {"a": b"a"})
    with pytest.raises(NotFound, match="is of run llama"):
        await node.chooser.choose(IDENTITY, Lineage("another"), 1)
    other = await node.chooser.choose(IDENTITY, Lineage("another"))
    with pytest.raises(NotFound, match="there are some of run llama"):
        await into_directory(node.fetcher, IDENTITY, other, "/nowhere")
    bucket.texts[taken.id] = b"nonsense"
    expected_logs.allow("restore.manifest_unreadable")
    with pytest.raises(NotFound, match="is damaged wherever it is"):
        await node.chooser.choose(IDENTITY, None, 1)


async def test_a_manifest_that_is_known_is_not_read_again(bench: Bench, bucket: MemoryTier, node: Node) -> None:
    taken = await save(bench, bucket, {"a": b"a"})
    bucket.texts[taken.id] = b"nonsense"
    assert (await node.chooser.choose(IDENTITY, LINEAGE, known=taken)).manifest is taken


async def test_an_older_snapshot_is_not_taken_because_a_newer_one_cannot_be_read_now(
    bench: Bench, expected_logs: ExpectedLogs
) -> None:
    lossy = Lossy()
    await save(bench, lossy, {"a": b"old"})
    node = Node(Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}"), lossy)  # noqa: S108
    try:
        await node.restore()
        await save(bench, lossy, {"a": b"new"}, 2)
        lossy.cut_off = True
        expected_logs.allow("restore.manifest_unreadable")
        with pytest.raises(TierUnavailable, match=r"@2 cannot be had now .*try again"):
            await node.restore()
        assert (node.tree / "a").read_bytes() == b"old"
        assert (await node.chooser.choose(IDENTITY, LINEAGE, 1)).manifest is not None  # when it is asked for
    finally:
        shutil.rmtree(node.layout.root)


async def test_an_older_snapshot_is_not_taken_when_a_silent_bucket_should_have_a_newer_one(
    bench: Bench, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = Lossy()
    await save(bench, lossy, {"a": b"old"})
    node = Node(Path("/dev/shm", f"fuse-tier-test-{secrets.token_hex(4)}"), lossy)  # noqa: S108
    try:
        await node.restore()
        lossy.silent = True

        async def locate(identity: object) -> Location:
            await trio.lowlevel.checkpoint()
            return Location((), (2,))

        monkeypatch.setattr(node.places.membership, "locate", locate)
        expected_logs.allow("restore.place_silent")
        with pytest.raises(TierUnavailable, match="should have 2"):
            await node.restore()
        assert (node.tree / "a").read_bytes() == b"old"
    finally:
        shutil.rmtree(node.layout.root)


async def test_another_run_begins_empty(bench: Bench, bucket: MemoryTier, node: Node) -> None:
    await save(bench, bucket, {"a": b"a"})
    assert await node.restore(Lineage("another")) is None
    assert list(node.tree.iterdir()) == []
    (node.tree / "b").write_bytes(b"b")
    taken = await node.volume.take_snapshot()
    assert taken is not None
    assert taken.id.number == 2  # numbers of the volume go on


@pytest.mark.parametrize("asked", [Lineage("llama", world_size=8), Lineage("llama", topology="1x8")])
async def test_another_shape_of_the_job_is_refused(
    asked: Lineage, bench: Bench, bucket: MemoryTier, node: Node
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    snapshotter = bench.snapshotter()
    saved = Lineage("llama", world_size=4, topology="1x4")
    from fuse_tier.replicate.instant import Quiescent

    taken = await snapshotter.take(SnapshotId(IDENTITY, 1), saved, Quiescent(), None)
    await bucket.store(taken.blobs, bench.ram)
    await bucket.commit(taken)
    with pytest.raises(RunMismatch, match="it is not restored"):
        await node.restore(asked)
    assert not node.tree.exists()


async def test_a_number_that_no_tier_has_is_refused_with_those_that_exist(
    bench: Bench, bucket: MemoryTier, node: Node
) -> None:
    await save(bench, bucket, {"a": b"a"}, 3)
    with pytest.raises(NotFound, match="those found are 3"):
        await node.restore(number=2)
