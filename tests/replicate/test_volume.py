from __future__ import annotations

import errno
from dataclasses import replace

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from fuse_tier.checkpoints import Saved
from fuse_tier.epochs import number_before
from fuse_tier.errors import FuseTierError, SnapshotConflict
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import SnapshotId
from fuse_tier.ram.pins import Pins
from fuse_tier.replicate.instant import Quiescent, TreeVersion
from fuse_tier.replicate.record import read_record
from fuse_tier.replicate.settling import final_snapshot, keep_snapshots
from fuse_tier.replicate.volume import Volume
from fuse_tier.restarts import BranchPoint, Resumption
from fuse_tier.several import as_of_step
from fuse_tier.tiers.base import TierName
from fuse_tier.wire.channel import ChannelClosed
from tests.harness.mapping import mapped
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench


async def test_an_empty_volume_takes_no_number(bench: Bench) -> None:
    assert await bench.volume.take_snapshot() is None
    assert list(await bench.ram.snapshots()) == []


async def test_a_tree_that_has_not_changed_gives_the_snapshot_that_it_has(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    first = await bench.volume.take_snapshot()
    assert first is not None
    assert await bench.volume.take_snapshot() is first
    assert not bench.volume.is_dirty


async def test_a_change_is_followed_by_a_snapshot_once_it_has_settled(bench: Bench, nursery: trio.Nursery) -> None:
    nursery.start_soon(keep_snapshots, bench.volume)
    (bench.tree / "a").write_bytes(b"a")
    bench.volume.changes.announce()
    with trio.fail_after(10):
        await bench.volume.wait_until_on(TierName.RAM, 1, 1)
    assert [str(snapshot) for snapshot in await bench.ram.snapshots()] == [f"{IDENTITY}@1"]


class LeavingGate(Quiescent):
    """Of a daemon that ends while it is asked; another comes in its place."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    async def version(self) -> TreeVersion:
        self._volume.gate = Quiescent()
        raise ChannelClosed("the other process has ended")


async def test_a_daemon_that_leaves_in_the_middle_is_no_reason_for_a_warning(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    (bench.tree / "a").write_bytes(b"a")
    bench.volume.gate = LeavingGate(bench.volume)
    with capture_logs() as logs:
        nursery.start_soon(keep_snapshots, bench.volume)
        bench.volume.changes.announce()
        await bench.volume.wait_until_on(TierName.RAM, 1, 1)
    assert "snapshot.interrupted" in [entry["event"] for entry in logs]
    assert {entry["log_level"] for entry in logs} <= {"debug", "info"}


async def test_numbers_grow_beyond_any_that_exists_elsewhere(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    first = await bench.volume.take_snapshot()
    bench.volume.exists_elsewhere(41)
    second = await bench.volume.take_snapshot()
    assert first is not None
    assert second is not None
    assert (first.id.number, second.id.number) == (1, 42)
    assert second.entries == first.entries


async def test_snapshots_are_numbered_within_the_epoch_of_their_owner(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    first = await bench.volume.take_snapshot()
    bench.volume.mountpoint = "/mnt"
    await bench.volume.renew(7)
    second = await bench.volume.take_snapshot()
    assert first is not None
    assert second is not None
    assert second.id.number == number_before(7) + 1
    assert second.entries == first.entries  # it counts as newer than what an owner in between may have saved
    again = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    await again.load()
    assert (again.tenure.numbering.epoch, again.newest) == (7, second)


@pytest.mark.parametrize("mountpoint", ["/mnt", None])
async def test_no_number_is_taken_that_is_of_a_later_owner(bench: Bench, mountpoint: str | None) -> None:
    (bench.tree / "a").write_bytes(b"a")
    await bench.volume.take_snapshot()
    bench.volume.mountpoint = mountpoint
    bench.volume.exists_elsewhere(number_before(7) + 1)
    with pytest.raises(FuseTierError, match="before it is clear whose the volume is"):
        await bench.volume.take_snapshot()
    assert bench.volume.tenure.numbering.is_exhausted
    assert bool(bench.volume.tenure.superseded) is (mountpoint is None)  # nobody will ask for what is not mounted


async def test_a_file_that_cannot_be_kept_fails_the_snapshot_with_its_own_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.tree / "a").write_bytes(b"a")

    def no_room(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Pins, "adopt", no_room)
        with pytest.raises(OSError, match="No space left"):
            await bench.volume.take_snapshot()
    assert await bench.volume.take_snapshot() is not None


async def test_of_two_snapshots_with_one_number_ours_gets_another(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    first = await bench.volume.take_snapshot()
    assert first is not None
    bench.volume.exists_elsewhere(first.id.number)  # the highest there, too
    assert bench.volume.is_dirty
    second = await bench.volume.take_snapshot()
    assert second is not None
    assert second.id.number == first.id.number + 1
    assert second.entries == first.entries


async def test_a_restarted_worker_knows_the_volume_from_the_ram_tier_alone(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    taken = await bench.volume.take_snapshot()
    again = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    await again.load()
    assert again.newest == taken
    assert again.lineage == LINEAGE
    assert again.tenure.numbering.highest == 1
    assert again.is_dirty  # until it has looked
    assert await again.take_snapshot() is again.newest


async def test_a_snapshot_is_durable_on_peers_when_there_are_enough_of_them(bench: Bench) -> None:
    volume = bench.volume
    volume.copies.stored(TierName.PEER, "b", 3)
    volume.copies.stored(TierName.PEER, "c", 2)
    assert volume.copies.durable(TierName.PEER) == 3
    assert volume.copies.durable(TierName.PEER, copies=2) == 2
    assert volume.copies.durable(TierName.PEER, copies=3) == 0
    volume.copies.lost(TierName.PEER, "b")
    assert volume.copies.durable(TierName.PEER) == 2


async def test_the_record_says_up_to_where_the_tree_has_come(bench: Bench) -> None:
    for content in (b"a", b"b"):
        bench.volume.pins.detach((bench.tree / "a").stat().st_ino if (bench.tree / "a").exists() else 0)
        (bench.tree / "a").write_bytes(content)
        await bench.volume.take_snapshot()
    record = read_record(bench.volume.layout)
    assert record is not None
    assert record.number == 2


async def test_who_has_a_volume_mounted_is_known_to_the_next_worker_too(bench: Bench) -> None:
    bench.volume.tenure.user = "pod default/llama-0 (uid)"
    bench.volume.resume(bench.volume.lineage, 0, 7, anew=False)
    record = read_record(bench.volume.layout)
    assert record is not None and record.user == "pod default/llama-0 (uid)"
    bench.volume.tenure.user = ""
    await bench.volume.load()
    assert bench.volume.tenure.user == record.user


async def test_a_file_tells_on_which_tiers_it_is(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    taken = await bench.volume.take_snapshot()
    assert taken is not None
    (blob,) = taken.blobs
    assert bench.volume.copies.state_of(blob) == "ram"
    bench.volume.copies.stored(TierName.PEER, "b", 1)
    bench.volume.copies.stored(TierName.BUCKET, "gs://x", 1)
    assert bench.volume.copies.state_of(blob) == "ram,peer,bucket"
    assert bench.volume.state() == "ram,peer,bucket"
    bench.volume.changes.announce()
    assert bench.volume.state() == "dirty"


async def test_what_is_in_use_is_known(bench: Bench, autojump_clock: MockClock) -> None:
    with bench.volume.using(7):
        assert set(bench.volume.in_use) == {7}
    assert not bench.volume.in_use


async def test_conflicting_numbers_on_the_own_tier_are_stepped_over_while_it_is_mounted(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    first = await bench.volume.take_snapshot()
    assert first is not None
    again = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    again.began(LINEAGE, None, 0)
    again.mountpoint = "/mnt"
    taken = await again.take_snapshot()
    assert taken is not None
    assert taken.id == SnapshotId(IDENTITY, 2)


async def test_a_tree_that_is_not_mounted_gives_way_to_who_took_its_number(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    assert await bench.volume.take_snapshot() is not None
    again = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    again.began(LINEAGE, None, 0)
    with pytest.raises(SnapshotConflict):
        await again.take_snapshot()
    with pytest.raises(FuseTierError, match="taken over"):
        await again.take_snapshot()


async def test_a_tree_that_was_made_for_a_restart_is_no_state_of_the_job_before_that_is_joined(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    whole = await bench.volume.take_snapshot()
    assert whole is not None
    bench.volume.began(LINEAGE, whole, whole.id.number, anew=True, is_tentative=True)
    assert await bench.volume.take_snapshot() is whole
    assert not bench.volume.is_dirty
    # Nor is it one for a worker that starts again in between.
    again = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    await again.load()
    assert not again.has_tree

    resumption = Resumption(LINEAGE.run, 7, 100, 3, before=(BranchPoint(1, None), BranchPoint(2, 50)))
    await bench.volume.went_on_from(resumption)
    taken = await bench.volume.take_snapshot()
    assert taken is not None and taken.id.number == whole.id.number + 1
    once_more = Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))
    await once_more.load()
    assert once_more.newest == taken
    assert once_more.tenure.resumption == resumption


async def test_a_part_of_a_snapshot_stands_under_no_number_that_is_listed_until_it_is_taken_again(
    bench: Bench,
) -> None:
    for step in (100, 200):
        (bench.tree / str(step)).mkdir()
        whole = await bench.volume.take_snapshot()
    assert whole is not None and Saved.of(whole).steps == (100, 200)
    (bench.tree / "200").rmdir()
    part = replace(as_of_step(whole, 100), id=SnapshotId(IDENTITY, 9))
    bench.volume.began(LINEAGE, part, whole.id.number, is_part=True)
    await bench.volume.list_newest()
    assert [one.number for one in await bench.ram.snapshots(IDENTITY)] == [1, 2]
    taken = await bench.volume.take_snapshot()
    assert taken is not None and (taken.id.number, Saved.of(taken).steps) == (10, (100,))


async def test_the_last_snapshot_waits_a_moment_for_who_still_writes_through_memory(bench: Bench) -> None:
    path = bench.tree / "mapped"
    path.write_bytes(b"content")
    async with trio.open_nursery() as nursery:
        with mapped(path, writable=True) as memory:
            nursery.start_soon(final_snapshot, bench.volume)
            with trio.fail_after(10):
                while bench.volume.snapshotter.is_settled:  # noqa: ASYNC110 - nothing tells of it
                    await trio.sleep(0.005)
            memory[:] = b"CONTENT"
    newest = bench.volume.newest
    assert newest is not None
    assert hash_bytes(b"CONTENT") in newest.blobs
