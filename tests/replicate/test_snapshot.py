from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_tier.deadlines import Deadline
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Kind, Manifest
from fuse_tier.replicate.instant import Quiescent, TreeVersion
from fuse_tier.replicate.settling import awaited_snapshot
from fuse_tier.replicate.snapshot import Snapshotter
from fuse_tier.replicate.walk import TreeChanged, Writers
from tests.harness.mapping import mapped
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench

PATIENCE_SECONDS = 20.0


def content(bench: Bench, manifest: Manifest, path: str) -> bytes:
    entry = next(entry for entry in manifest.entries if entry.path == path.encode())
    assert entry.blob is not None
    fd = bench.ram.open(entry.blob)
    with open(fd, "rb") as file:
        return file.read()


def paths(manifest: Manifest) -> list[str]:
    return [os.fsdecode(entry.path) for entry in manifest.entries]


class Scripted:
    """A gate whose answers are given; ``on_version`` is what the job does meanwhile."""

    def __init__(self, writers: Writers | None = None) -> None:
        self.counter = 0
        self.writers = writers or Writers()
        self.held = 0
        self.changes_left = 0

    async def version(self) -> TreeVersion:
        if self.changes_left and not self.held:
            self.changes_left -= 1
            self.counter += 1
        return TreeVersion(self.counter, self.writers)

    async def hold(self, seconds: float) -> TreeVersion:
        self.held += 1
        return TreeVersion(self.counter, self.writers)

    async def release(self) -> None:
        self.held -= 1


async def test_a_snapshot_has_the_whole_tree(bench: Bench) -> None:
    (bench.tree / "step_1").mkdir(mode=0o750)
    (bench.tree / "step_1" / "model.bin").write_bytes(b"weights" * 1000)
    (bench.tree / "latest").symlink_to("step_1")
    os.link(bench.tree / "step_1" / "model.bin", bench.tree / "step_1" / "z-same.bin")
    os.mkfifo(bench.tree / "pipe")
    (bench.tree / "empty").touch()
    os.utime(bench.tree / "empty", ns=(5, 1_234_567_891))

    taken = await bench.snapshot()

    assert paths(taken) == ["", "empty", "latest", "pipe", "step_1", "step_1/model.bin", "step_1/z-same.bin"]
    by_path = {os.fsdecode(entry.path): entry for entry in taken.entries}
    assert by_path["step_1/model.bin"].blob == hash_bytes(b"weights" * 1000)
    assert by_path["step_1/z-same.bin"].kind is Kind.HARDLINK
    assert by_path["latest"].target == b"step_1"
    assert by_path["step_1"].mode == 0o750
    assert by_path["empty"].mtime_ns == 1_234_567_891


async def test_sealing_copies_nothing(bench: Bench) -> None:
    (bench.tree / "model.bin").write_bytes(b"x" * 100_000)
    taken = await bench.snapshot()
    (blob,) = taken.blobs
    assert os.stat(bench.layout.blob(blob)).st_ino == (bench.tree / "model.bin").stat().st_ino


async def test_a_snapshot_keeps_its_content_when_the_job_writes_on(bench: Bench) -> None:
    file = bench.tree / "model.bin"
    file.write_bytes(b"first")
    first = await bench.snapshot()
    bench.volume.pins.detach(file.stat().st_ino)  # what the daemon does before it lets anybody write
    file.write_bytes(b"second")
    second = await bench.snapshot(2, first)
    assert content(bench, first, "model.bin") == b"first"
    assert content(bench, second, "model.bin") == b"second"


async def test_equal_files_share_one_blob_and_stay_two_files(bench: Bench) -> None:
    for name in ("a", "b"):
        (bench.tree / name).write_bytes(b"same")
    first = await bench.snapshot()
    assert len(first.blobs) == 1
    bench.volume.pins.detach((bench.tree / "b").stat().st_ino)
    (bench.tree / "b").write_bytes(b"else")
    second = await bench.snapshot(2, first)
    assert content(bench, second, "a") == b"same"
    assert content(bench, second, "b") == b"else"
    assert content(bench, first, "b") == b"same"


async def test_a_file_that_is_being_written_stands_as_it_was_last_sealed(bench: Bench) -> None:
    file = bench.tree / "log"
    file.write_bytes(b"sealed")
    first = await bench.snapshot()
    inode = file.stat().st_ino
    bench.volume.pins.detach(inode)
    file.write_bytes(b"half writ")
    (bench.tree / "never-sealed").write_bytes(b"half")
    writers = Writers(frozenset({inode, (bench.tree / "never-sealed").stat().st_ino}))
    second = await bench.snapshot(2, first, Scripted(writers))
    assert content(bench, second, "log") == b"sealed"
    assert "never-sealed" not in paths(second)


async def test_a_file_that_was_fsynced_and_is_still_open_is_kept_as_a_copy(bench: Bench) -> None:
    file = bench.tree / "events"
    file.write_bytes(b"synced")
    inode = file.stat().st_ino
    writers = Writers(frozenset({inode}), frozenset({inode}))
    first = await bench.snapshot(1, None, Scripted(writers))
    with file.open("ab") as still_open:
        still_open.write(b" and more")
    assert content(bench, first, "events") == b"synced"
    assert not bench.volume.pins.shares_inode(inode)


async def test_a_file_that_is_written_through_memory_is_sealed_when_its_mapping_is_gone(bench: Bench) -> None:
    (bench.tree / "mapped").write_bytes(b"being written")
    (bench.tree / "file").write_bytes(b"file")
    snapshotter = bench.snapshotter()
    with mapped(bench.tree / "mapped", writable=True) as memory:
        first = await snapshotter.take(SnapshotId(IDENTITY, 1), LINEAGE, Quiescent(), None)
        memory[:5] = b"BEING"
        settled = [snapshotter.is_settled]
        assert "mapped" not in paths(first)
        assert content(bench, first, "file") == b"file"
    second = await snapshotter.take(SnapshotId(IDENTITY, 2), LINEAGE, Quiescent(), first)
    assert [*settled, snapshotter.is_settled] == [False, True]
    assert content(bench, second, "mapped") == b"BEING written"


async def test_a_walk_that_a_change_overtook_is_made_again(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    gate = Scripted()
    gate.changes_left = 2
    taken = await bench.snapshot(1, None, gate)
    assert content(bench, taken, "a") == b"a"
    assert gate.changes_left == 0


async def test_a_tree_that_never_rests_is_held_for_one_walk(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    gate = Scripted()
    gate.changes_left = 1000
    held = []
    hold = gate.hold

    async def remember(seconds: float) -> TreeVersion:
        held.append(seconds)
        return await hold(seconds)

    gate.hold = remember  # type: ignore[method-assign]
    taken = await bench.snapshot(1, None, gate)
    assert content(bench, taken, "a") == b"a"
    assert len(held) == 1
    assert gate.held == 0


class Telling(Scripted):
    """A tree that never rests, and tells of being let go."""

    def __init__(self) -> None:
        super().__init__()
        self.changes_left = 10**6
        self.let_go = trio.Event()

    async def release(self) -> None:
        await super().release()
        self.let_go.set()


async def test_nobody_is_held_while_others_hash(bench: Bench, nursery: trio.Nursery) -> None:
    (bench.tree / "a").write_bytes(b"a")
    gate, hashing, taken = Telling(), trio.CapacityLimiter(1), trio.Event()
    snapshotter = Snapshotter(bench.layout, bench.volume.layout, "a", hashing, bench.volume.evicting)

    async def take() -> None:
        await snapshotter.take(SnapshotId(IDENTITY, 1), LINEAGE, gate, None)
        taken.set()

    async with hashing:  # another volume's files
        nursery.start_soon(take)
        with trio.fail_after(PATIENCE_SECONDS):
            await gate.let_go.wait()
        assert not taken.is_set()
    with trio.fail_after(PATIENCE_SECONDS):
        await taken.wait()


async def test_a_job_is_held_only_when_nothing_is_being_evicted(bench: Bench, nursery: trio.Nursery) -> None:
    class Evicted(Telling):
        """Content is taken out when the tree has been read three times."""

        def __init__(self) -> None:
            super().__init__()
            self.asked = 0
            self.evicting, self.evicted = trio.Event(), trio.Event()
            self.held_beside = False

        async def hold(self, seconds: float) -> TreeVersion:
            self.held_beside = self.held_beside or not self.evicted.is_set()
            return await super().hold(seconds)

        async def version(self) -> TreeVersion:
            self.asked += 1
            if self.asked == 6:
                await nursery.start(self.evict)
            return await super().version()

        async def evict(self, task_status: trio.TaskStatus[None]) -> None:
            async with bench.volume.evicting:
                task_status.started()
                self.evicting.set()
                await self.evicted.wait()

    (bench.tree / "a").write_bytes(b"a")
    gate = Evicted()
    nursery.start_soon(bench.snapshot, 1, None, gate)
    with trio.fail_after(PATIENCE_SECONDS):
        await gate.evicting.wait()
    await wait_all_tasks_blocked()
    gate.evicted.set()
    with trio.fail_after(PATIENCE_SECONDS):
        await gate.let_go.wait()
    assert not gate.held_beside


class Large(Scripted):
    """A tree that never rests, and takes so many seconds to read."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.changes_left = 10**6
        self.seconds = seconds
        self.asked: list[float] = []

    async def hold(self, seconds: float) -> TreeVersion:
        self.asked.append(round(seconds))
        return await super().hold(seconds)

    async def version(self) -> TreeVersion:
        if self.held and self.asked[-1] < self.seconds:
            await trio.sleep(self.asked[-1])
            self.counter += 1  # the hold has lapsed
        return await super().version()


async def test_a_job_is_held_back_for_longer_until_its_tree_is_read_but_never_for_most_of_its_time(
    bench: Bench, autojump_clock: MockClock
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    gate, snapshotter = Large(10), bench.snapshotter()

    async def take() -> Manifest:
        return await snapshotter.take(SnapshotId(IDENTITY, 1), LINEAGE, gate, None)

    began = trio.current_time()
    for held in (2, 4, 8):
        with pytest.raises(TreeChanged, match=f"is not held back again for {9 * held} s"):
            await take()
        assert snapshotter.held_seconds == pytest.approx(held)
        asked = list(gate.asked)
        with pytest.raises(TreeChanged, match="was held back in vain, and is not held back again"):
            await take()
        assert gate.asked == asked
        assert snapshotter.held_seconds == 0
        await trio.sleep(9 * held)
    assert content(bench, await take(), "a") == b"a"
    assert gate.asked == [2, 4, 8, 16]
    assert gate.held == 0
    assert trio.current_time() - began == pytest.approx(10 * (2 + 4 + 8), rel=0.01)


async def test_who_waits_for_a_snapshot_gets_it_after_as_many_holds_as_it_takes(
    bench: Bench, autojump_clock: MockClock
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    gate = bench.volume.gate = Large(10)
    with pytest.raises(TreeChanged):
        await bench.volume.take_snapshot()
    began = trio.current_time()
    taken = await awaited_snapshot(bench.volume)
    assert taken is not None and content(bench, taken, "a") == b"a"
    assert gate.asked == [2, 4, 8, 16]
    assert trio.current_time() - began < 9 * 2, "nobody has waited until the job would have been held by itself"


async def test_a_tree_that_is_too_large_to_be_read_while_its_job_is_held_is_read_when_it_rests(
    bench: Bench, autojump_clock: MockClock
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    gate, snapshotter = Large(3600), bench.snapshotter()
    for _ in range(200):
        with pytest.raises(TreeChanged):
            await snapshotter.take(SnapshotId(IDENTITY, 1), LINEAGE, gate, None)
        await trio.sleep(5)
    assert trio.current_time() > 1000
    assert sum(gate.asked) < trio.current_time() / 8, "of each hold the tenfold is the job's"
    assert max(gate.asked) == Deadline.HOLD_LONGER
    gate.changes_left = 0
    taken = await snapshotter.take(SnapshotId(IDENTITY, 1), LINEAGE, gate, None)
    assert content(bench, taken, "a") == b"a"


async def test_a_tree_that_changes_while_it_is_held_gives_no_snapshot(bench: Bench) -> None:
    class Unreliable(Scripted):
        async def version(self) -> TreeVersion:
            self.counter += 1
            return await super().version()

    (bench.tree / "a").write_bytes(b"a")
    with pytest.raises(TreeChanged, match="held back"):
        await bench.snapshot(1, None, Unreliable())
    assert list(await bench.ram.snapshots()) == []


async def test_ten_thousand_small_files_are_sealed(bench: Bench) -> None:
    for index in range(10_000):
        (bench.tree / f"{index:05d}").write_bytes(b"%d" % index)
    taken = await bench.snapshot()
    assert len(taken.blobs) == 10_000
    assert content(bench, taken, "09999") == b"9999"


async def test_pins_of_removed_files_are_forgotten_but_not_their_blobs(bench: Bench) -> None:
    file = bench.tree / "old"
    file.write_bytes(b"old")
    first = await bench.snapshot()
    file.unlink()
    await bench.snapshot(2, first)
    assert content(bench, first, "old") == b"old"


async def test_users_attributes_are_kept_and_ours_are_not(bench: Bench) -> None:
    file = bench.tree / "f"
    file.write_bytes(b"x")
    try:
        os.setxattr(file, "user.note", b"mine")
    except OSError as error:
        pytest.skip(f"this tmpfs keeps no user attributes: {error.strerror}")
    taken = await bench.snapshot()
    assert taken.entries[1].xattrs == ((b"user.note", b"mine"),)


async def test_paths_in_any_bytes_are_kept(bench: Bench) -> None:
    name = bytes(range(1, 47)) + bytes(range(48, 256))
    Path(os.fsdecode(os.path.join(os.fsencode(bench.tree), name))).write_bytes(b"x")
    taken = await bench.snapshot()
    assert taken.entries[1].path == name
