from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.entries import Entry, Kind
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.room import Room, room_of
from fuse_tier.ram.spares import PIECE_BYTES, Spares
from fuse_tier.replicate import sparing
from fuse_tier.replicate.broadcast import Broadcast
from fuse_tier.replicate.expecting import Expecting
from fuse_tier.replicate.room import KeptSpares, RoomKeeper
from fuse_tier.replicate.sparing import Sparing, next_sizes, nothing
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.base import TierName
from tests.harness.waiting import until
from tests.replicate.conftest import IDENTITY, Bench

MIB = 1 << 20
SIZE = 32 * MIB


def entries(**sizes: int) -> list[Entry]:
    return [
        Entry(path.replace("__", "/").encode(), Kind.FILE, blob=Blob(hash_bytes(path.encode()).digest, size))
        for path, size in sizes.items()
    ]


def test_what_comes_next_is_what_the_newest_step_has() -> None:
    tree = entries(
        step_99__rank0=40 * MIB,
        step_100__rank0=50 * MIB,
        step_100__rank1=60 * MIB,
        step_100__meta=5,
        last=70 * MIB,
        last_100=80 * MIB,
    )
    assert next_sizes(tree) == [80 * MIB, 60 * MIB, 50 * MIB]


def test_of_files_without_a_number_or_of_no_size_nothing_comes() -> None:
    assert next_sizes(entries(weights=50 * MIB, step_1=5)) == []


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparing, "_LOOK_EVERY_SECONDS", 0.02)


class Node:
    """At rest, or not, and as full as a test says."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rests = True
        self.looks = 0
        self.used = 0
        self.spares = Spares(bench.layout)
        self._bench = bench
        monkeypatch.setattr(sparing, "room_of", lambda root: Room(40 * SIZE, 40 * SIZE - self.used))
        monkeypatch.setattr(sparing, "memory_left", lambda: None)
        self.others = 0
        monkeypatch.setattr(
            sparing, "spare_memory", lambda: 40 * SIZE - self.others - self.spares.pieces() * PIECE_BYTES
        )

    def is_at_rest(self) -> bool:
        self.looks += 1
        return self.rests

    def sparing(
        self,
        smallest: int = 0,
        expected: Callable[[], Awaitable[list[int]]] = nothing,
        *,
        keeps_pieces: bool = False,
    ) -> Sparing:
        volumes = [self._bench.volume]
        return Sparing(self._bench.layout, volumes, self.is_at_rest, smallest, expected, keeps_pieces=keeps_pieces)

    async def saves(self, name: str) -> None:
        os.truncate(_made(self._bench, name), SIZE)
        self._bench.volume.changes.announce()
        assert await self._bench.volume.take_snapshot() is not None

    async def until_there_are(self, *sizes: int) -> None:
        async def there_are() -> bool:
            return sorted(self.spares.sizes()) == list(sizes)

        await until(there_are)

    async def until_looked(self) -> None:
        enough = self.looks + 3

        async def looked() -> bool:
            return self.looks >= enough

        await until(looked)


def _made(bench: Bench, name: str) -> str:
    path = bench.tree / name
    path.touch()
    return str(path)


@pytest.fixture
def node(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Node:
    bench.volume.mountpoint = "/mnt"
    return Node(bench, monkeypatch)


async def test_once_the_node_is_at_rest_there_is_a_spare_for_the_next_checkpoint(node: Node) -> None:
    node.rests = False
    spares = node.sparing()
    await node.saves("step_1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spares.run)
        await node.until_looked()
        assert node.spares.sizes() == []
        assert spares.waiting_bytes == SIZE
        node.rests = True
        await node.until_there_are(SIZE)
        assert spares.waiting_bytes == 0
        nursery.cancel_scope.cancel()
    assert node.spares.sizes() == [], "the node has ended"


async def test_spares_go_when_more_than_half_of_the_room_is_taken_and_come_back(
    node: Node, nursery: trio.Nursery
) -> None:
    await node.saves("step_1")
    nursery.start_soon(node.sparing().run)
    await node.until_there_are(SIZE)
    node.used = 20 * SIZE + 1
    await node.until_there_are()
    await node.until_looked()
    assert node.spares.sizes() == []
    node.used = 19 * SIZE
    await node.until_there_are(SIZE)


async def test_spares_of_what_is_not_mounted_any_more_go(node: Node, bench: Bench, nursery: trio.Nursery) -> None:
    await node.saves("step_1")
    nursery.start_soon(node.sparing().run)
    await node.until_there_are(SIZE)
    bench.volume.mountpoint = None
    await node.until_there_are()


async def test_what_peers_will_send_has_spares_once_our_own_jobs_have_theirs(
    node: Node, nursery: trio.Nursery
) -> None:
    await node.saves("step_1")
    expected = [2 * SIZE, SIZE]

    async def peers() -> list[int]:
        await trio.lowlevel.checkpoint()
        return expected

    node.used = 18 * SIZE  # 2 are left for spares
    nursery.start_soon(node.sparing(expected=peers).run)
    await node.until_there_are(SIZE, SIZE)
    node.used = 0
    await node.until_there_are(SIZE, SIZE, 2 * SIZE)
    expected.clear()
    await node.until_there_are(SIZE)


async def test_peers_send_what_the_newest_copies_have_of_volumes_that_are_mounted_elsewhere(bench: Bench) -> None:
    mounted = {IDENTITY}
    expecting = Expecting(bench.ram, mounted.__contains__)
    assert await expecting.sizes() == []
    for number, name in enumerate(("step_1", "step_2"), 1):
        os.truncate(_made(bench, name), SIZE * number)
        await bench.snapshot(number)
    assert await expecting.sizes() == [2 * SIZE]
    mounted.clear()
    assert await expecting.sizes() == []


async def test_a_small_tier_has_none(node: Node) -> None:
    await node.saves("step_1")
    spares = node.sparing(smallest=41 * SIZE)
    await spares.run()
    assert spares.waiting_bytes == 0


async def test_what_is_left_of_the_room_is_kept_in_pieces_where_memory_shall_be_ready_and_no_job_is(
    node: Node, bench: Bench, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room(root: str) -> Room:
        return Room(40 * SIZE, 40 * SIZE - node.used - sum(node.spares.sizes()))

    async def a_copy() -> list[int]:
        await trio.lowlevel.checkpoint()
        return [SIZE]

    monkeypatch.setattr(sparing, "room_of", room)
    bench.volume.mountpoint = None
    node.used = 20 * SIZE - 3 * PIECE_BYTES - SIZE
    spares = node.sparing(expected=a_copy, keeps_pieces=True)
    nursery.start_soon(spares.run)
    await node.until_there_are(SIZE, PIECE_BYTES, PIECE_BYTES)
    assert spares.waiting_bytes == 0
    node.used += PIECE_BYTES // 2
    await node.until_looked()
    assert node.spares.sizes_made_for() == [SIZE], "a little that is written costs no more than it takes"
    await node.until_there_are(SIZE, PIECE_BYTES)
    bench.volume.mountpoint = "/mnt"
    await node.until_there_are(SIZE)


async def test_pieces_are_kept_of_memory_that_nobody_else_uses(
    node: Node, bench: Bench, nursery: trio.Nursery
) -> None:
    bench.volume.mountpoint = None
    node.others = 40 * SIZE - 4 * PIECE_BYTES
    nursery.start_soon(node.sparing(keeps_pieces=True).run)
    await node.until_there_are(PIECE_BYTES, PIECE_BYTES, PIECE_BYTES)
    node.rests = False
    await node.until_looked()  # what was begun at rest is over
    node.others += 2 * PIECE_BYTES + 1
    await node.until_there_are(PIECE_BYTES)
    node.others = 40 * SIZE
    await node.until_there_are()


async def test_room_is_made_of_spares_before_anything_else_is_given_up(
    node: Node, bench: Bench, nursery: trio.Nursery
) -> None:
    volumes = Volumes(
        bench.layout, bench.ram, bench.volume.options, trio.CapacityLimiter(2), nursery, has_bucket=False
    )
    with node.spares.begin(SIZE) as spare:
        spare.fill(0, SIZE)
        spare.finish()
    first = await bench.snapshot()
    room = RoomKeeper(bench.layout, bench.ram, volumes, Broadcast())
    assert bench.ram.free_bytes() >= room_of(bench.layout.root).free + SIZE, "spares are room"
    await room.make(room_of(bench.layout.root).free + 4 * MIB)
    assert node.spares.sizes() == []
    assert first.id in await bench.ram.snapshots()


async def test_pieces_are_room_for_who_gives_them_up_as_he_allocates(
    node: Node, bench: Bench, nursery: trio.Nursery
) -> None:
    volumes = Volumes(
        bench.layout, bench.ram, bench.volume.options, trio.CapacityLimiter(2), nursery, has_bucket=False
    )
    with node.spares.begin(SIZE) as spare, node.spares.begin_piece() as piece:
        assert spare.finish()
        assert piece.finish()
    room = RoomKeeper(bench.layout, bench.ram, volumes, Broadcast())
    free = room_of(bench.layout.root).free
    await room.make(free + PIECE_BYTES // 2, kept=KeptSpares.PIECES)
    assert sorted(node.spares.sizes()) == [SIZE, PIECE_BYTES]
    await room.make(free + 2 * PIECE_BYTES, kept=KeptSpares.PIECES)
    assert node.spares.sizes() == [PIECE_BYTES], "what was made for other content goes first"
    await room.make(free + 2 * PIECE_BYTES)
    assert node.spares.sizes() == []


async def test_spares_count_as_the_room_that_is_reserved_for_peers_and_are_not_made_again_and_again(
    node: Node, bench: Bench, nursery: trio.Nursery
) -> None:
    volumes = Volumes(
        bench.layout, bench.ram, bench.volume.options, trio.CapacityLimiter(2), nursery, has_bucket=False
    )
    volume = await volumes.open(bench.volume.identity)
    for content in ("older", "newer"):
        (bench.tree / content).touch()
        volume.changes.announce()
        assert await volume.take_snapshot() is not None
    volume.copies.stored(TierName.PEER, "b", 2)
    with node.spares.begin_piece() as piece:
        assert piece.finish()
    more_than_there_is = 2 * room_of(bench.layout.root).capacity
    nursery.start_soon(RoomKeeper(bench.layout, bench.ram, volumes, Broadcast(), more_than_there_is).run)

    async def has_made_room() -> bool:
        return len(await bench.ram.snapshots()) == 1

    await until(has_made_room)
    assert node.spares.sizes() == [PIECE_BYTES]
