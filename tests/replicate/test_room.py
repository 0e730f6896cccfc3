"""Room in a RAM tier: what is given up, what is spared, and that it comes back."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuse_tier.hashing import hash_bytes
from fuse_tier.manifest import Manifest
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.remote import Refill, give_up, mark, remote_files
from fuse_tier.ram.room import Reserve, room_of
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.room import RoomKeeper
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.base import TierName
from tests.replicate.conftest import Bench


async def test_content_that_was_given_up_stays_in_snapshots_and_comes_back_into_the_same_file(bench: Bench) -> None:
    path = bench.tree / "old.bin"
    path.write_bytes(b"x" * 100_000)
    os.utime(path, ns=(1, 2))
    first = await bench.snapshot()
    inode = path.stat().st_ino
    (blob,) = first.blobs
    layout, volume = bench.layout, bench.volume
    assert mark(layout, volume.layout, inode, blob)
    assert remote_files(volume.layout) == {inode: blob}
    await bench.ram.drop(first.id)
    assert give_up(layout, volume.layout, volume.pins, inode, blob) >= 100_000
    assert path.stat().st_blocks == 0
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (100_000, 2)

    (bench.tree / "new.bin").write_bytes(b"y")
    taken = await volume.take_snapshot()
    assert taken is not None
    assert {entry.path for entry in taken.entries} == {b"", b"new.bin", b"old.bin"}
    assert blob in taken.blobs
    assert taken.id not in await bench.ram.snapshots()

    incoming = Refill(volume.layout, inode, "ram of a").create(blob)
    os.pwrite(incoming.fd, b"x" * 100_000, 0)
    incoming.accept()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (inode, 2)
    assert path.read_bytes() == b"x" * 100_000
    assert remote_files(volume.layout) == {}
    assert path.stat().st_nlink == 1


async def test_content_that_a_snapshot_names_since_a_moment_is_not_given_up(bench: Bench) -> None:
    path = bench.tree / "file"
    path.write_bytes(b"x" * 100_000)
    (blob,) = (await bench.snapshot()).blobs
    inode = path.stat().st_ino
    assert mark(bench.layout, bench.volume.layout, inode, blob)
    assert await bench.ram.give_up(bench.volume.layout, {inode: blob}) == {}
    assert remote_files(bench.volume.layout) == {}
    assert path.read_bytes() == b"x" * 100_000


async def test_a_tree_is_not_read_while_content_is_taken_out_of_it(bench: Bench) -> None:
    path = bench.tree / "file"
    path.write_bytes(b"x" * 100_000)
    first = await bench.volume.take_snapshot()
    assert first is not None
    inode, (blob,) = path.stat().st_ino, first.blobs
    (bench.tree / "new").write_bytes(b"y")
    taken: list[Manifest | None] = []

    async def take() -> None:
        taken.append(await bench.volume.take_snapshot())

    async with trio.open_nursery() as nursery, bench.volume.evicting:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        assert mark(bench.layout, bench.volume.layout, inode, blob)
        await bench.ram.drop(first.id)
        assert await bench.ram.give_up(bench.volume.layout, {inode: blob})
        assert taken == []
    (second,) = taken
    assert second is not None
    assert blob in second.blobs


async def test_content_of_a_snapshot_that_is_not_listed_is_not_collected(bench: Bench) -> None:
    (bench.tree / "file").write_bytes(b"content")
    taken = await bench.volume.take_snapshot()
    assert taken is not None
    await bench.ram.drop(taken.id)
    bench.ram.spared = lambda: taken.blobs
    await bench.ram.collect(0)
    assert not await bench.ram.missing(taken.blobs)


async def test_a_restart_knows_what_was_given_up(bench: Bench) -> None:
    path = bench.tree / "old.bin"
    path.write_bytes(b"x" * 70_000)
    first = await bench.snapshot()
    (blob,) = first.blobs
    inode = path.stat().st_ino
    assert mark(bench.layout, bench.volume.layout, inode, blob)
    await bench.ram.drop(first.id)
    give_up(bench.layout, bench.volume.layout, bench.volume.pins, inode, blob)
    again = Volume(first.id.identity, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(2))
    await again.load()
    taken = await again.take_snapshot()
    assert taken is not None
    assert taken.blobs == first.blobs


async def test_for_room_that_is_reserved_for_peers_what_is_superseded_and_elsewhere_goes(
    bench: Bench, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse_tier.replicate.room._LOOK_EVERY_SECONDS", 0.02)
    volumes = Volumes(
        bench.layout, bench.ram, bench.volume.options, trio.CapacityLimiter(2), nursery, has_bucket=False
    )
    volume = await volumes.open(bench.volume.identity)
    for content in (b"x" * 100_000, b"y" * 100_000):
        (bench.tree / "file").unlink(missing_ok=True)
        (bench.tree / "file").write_bytes(content)
        await volume.take_snapshot()
    nothing, more_than_there_is = Broadcast(), room_of(bench.layout.root).capacity
    nursery.start_soon(RoomKeeper(bench.layout, bench.ram, volumes, nothing, more_than_there_is).run)
    await trio.sleep(0.2)
    assert len(await bench.ram.snapshots()) == 2  # the older one is nowhere else
    volume.copies.stored(TierName.PEER, "b", 2)
    with trio.fail_after(10):
        while len(await bench.ram.snapshots()) > 1:  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(0.05)
    assert [snapshot.number for snapshot in await bench.ram.snapshots()] == [2]


async def test_room_comes_while_content_is_on_its_way_to_the_bucket_and_not_once_it_is_there(
    bench: Bench, nursery: trio.Nursery
) -> None:
    volumes = Volumes(
        bench.layout, bench.ram, bench.volume.options, trio.CapacityLimiter(2), nursery, has_bucket=True
    )
    volume, failing = await volumes.open(bench.volume.identity), False
    (bench.tree / "file").write_bytes(b"x" * 100_000)
    taken = await volume.take_snapshot()
    assert taken is not None
    more_than_there_is, news = room_of(bench.layout.root).capacity, Broadcast()
    keeper = RoomKeeper(bench.layout, bench.ram, volumes, news, brings=lambda volume: not failing)
    assert (await keeper.make_for_job(more_than_there_is, waited=0.0)).coming
    assert volume.demanded == taken.id.number, "nobody waits until its backup is due"
    failing = True
    assert not (await keeper.make_for_job(more_than_there_is, waited=0.0)).coming
    failing = False
    volume.copies.stored(TierName.BUCKET, "bucket", taken.id.number)
    assert not (await keeper.make_for_job(more_than_there_is, waited=0.0)).coming
    volume.changes.announce()
    assert (await keeper.make_for_job(more_than_there_is, waited=None)).coming, (
        "what has changed will be in a snapshot"
    )
    assert not (await keeper.make_for_job(more_than_there_is, waited=3600.0)).coming, "but not for ever"
    assert not (await RoomKeeper(bench.layout, bench.ram, volumes, news).make_for_job(1 << 60, waited=0.0)).coming


def test_a_reserve_is_spent_and_filled_again(bench: Bench) -> None:
    reserve = Reserve(bench.layout)
    whole = reserve.refill()
    assert whole == 16 << 20
    free = room_of(bench.layout.root).free
    assert reserve.spend(1 << 20, for_job=True) == 1 << 20
    assert room_of(bench.layout.root).free > free
    assert reserve.refill() == whole
    assert sum(reserve.spend(1 << 20, for_job=True) for _ in range(20)) == whole // 2, "jobs get half of it"
    assert 0 < reserve.spend(1, for_job=False) < 1 << 20
    assert reserve.refill() == whole


async def test_content_of_dropped_snapshots_goes_at_once_and_that_of_others_stays(bench: Bench) -> None:
    content = RamContent(bench.layout, "ram of a")
    blobs = []
    for text in (b"1", b"2"):
        blob = hash_bytes(text)
        incoming = content.create(blob)
        os.pwrite(incoming.fd, text, 0)
        incoming.accept()
        blobs.append(blob)
    assert await bench.ram.release(blobs[:1]) > 0
    assert await bench.ram.missing(blobs) == {blobs[0]}
