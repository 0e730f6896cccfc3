"""Transfers that break go on where they broke, and only from what is verified."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from contextlib import aclosing
from pathlib import Path

import pytest

from fuse_tier.blobs import Blob, Partial
from fuse_tier.errors import InvalidRequest, TierFull, TierUnavailable
from fuse_tier.hashing import hash_beginning, hash_bytes
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.partials import SMALLEST_KEPT, Partials
from fuse_tier.ram.spares import Spares
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.partials import partials_from_wire, partials_to_wire
from tests.harness.snapshots import holding
from tests.wire.certificates import Certificates, make_certificates
from tests.wire.peers import running_peer
from tests.wire.proxies import cutting

SIZE = 24 << 20
_BESIDES = 256 << 10  # bytes of a stream that are no content: handshakes, headers, TLS records


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def source(rng: random.Random) -> MemoryBlobs:
    return holding([rng.randbytes(SIZE)])


def content_in(directory: str | Path, name: str) -> RamContent:
    layout = Layout(f"{directory}/{name}")
    os.makedirs(layout.root)
    create_directories(layout)
    return RamContent(layout, f"ram of {name}")


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_broken_push_goes_on_where_it_broke(
    memory_path: Path, certificates: Certificates, source: MemoryBlobs, encrypted: bool
) -> None:
    tls = (certificates.a, certificates.b) if encrypted else (None, None)
    async with (
        running_peer(memory_path, tls[1]) as peer,
        cutting(peer.bulk, [9 << 20, 7 << 20]) as proxy,
        aclosing(peer.tier(tls[0])) as tier,
    ):
        peer.addresses["bulk"] = proxy.address
        await tier.store(source.contents.keys(), source)
        assert await peer.ram.missing(source.contents.keys()) == set()
        assert proxy.connections == 3
        assert SIZE <= sum(proxy.passed) < SIZE + 3 * _BESIDES
        assert os.listdir(peer.layout.incoming) == []


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_broken_fetch_goes_on_where_it_broke(
    memory_path: Path, certificates: Certificates, source: MemoryBlobs, encrypted: bool
) -> None:
    tls = (certificates.a, certificates.b) if encrypted else (None, None)
    sink = content_in(memory_path, "a")
    (memory_path / "b").mkdir()
    async with (
        running_peer(memory_path / "b", tls[1]) as peer,
        cutting(peer.bulk, [9 << 20, 7 << 20]) as proxy,
        aclosing(peer.tier(tls[0])) as tier,
    ):
        await peer.ram.store(source.contents.keys(), source)
        peer.addresses["bulk"] = proxy.address
        fetched = await tier.fetch(source.contents.keys(), sink)
        assert fetched.arrived == source.contents.keys()
        assert sink.missing(source.contents.keys()) == set()
        assert proxy.connections == 3
        assert sum(proxy.passed) < SIZE + 3 * _BESIDES


async def test_what_another_holder_began_the_next_one_ends(memory_path: Path, source: MemoryBlobs) -> None:
    sink = content_in(memory_path, "own")
    (memory_path / "b").mkdir()
    (memory_path / "c").mkdir()
    async with running_peer(memory_path / "b") as b, running_peer(memory_path / "c", node="c") as c:
        for peer in (b, c):
            await peer.ram.store(source.contents.keys(), source)
        async with cutting(b.bulk, [9 << 20, *[1 << 10] * 100]) as proxy, aclosing(b.tier()) as tier:
            b.addresses["bulk"] = proxy.address
            with pytest.raises(TierUnavailable):
                await tier.fetch(source.contents.keys(), sink)
        async with cutting(c.bulk) as proxy, aclosing(c.tier()) as tier:
            c.addresses["bulk"] = proxy.address
            assert (await tier.fetch(source.contents.keys(), sink)).arrived == source.contents.keys()
            assert sum(proxy.passed) < SIZE - (8 << 20)


async def test_a_transfer_that_moves_nothing_is_not_tried_for_ever(memory_path: Path, source: MemoryBlobs) -> None:
    async with (
        running_peer(memory_path) as peer,
        cutting(peer.bulk, [1 << 10] * 100) as proxy,
        aclosing(peer.tier()) as tier,
    ):
        peer.addresses["bulk"] = proxy.address
        with pytest.raises(TierUnavailable, match=r"the transfer with .* failed"):
            await tier.store(source.contents.keys(), source)
        assert proxy.connections <= 5


def begin(content: RamContent, blob: Blob, beginning: bytes) -> None:
    """Leaves what a broken transfer leaves."""
    incoming = content.create(blob)
    os.pwrite(incoming.fd, beginning, 0)
    incoming.landed(len(beginning))
    incoming.keep()


async def test_a_beginning_that_is_of_something_else_is_sent_anew(memory_path: Path, source: MemoryBlobs) -> None:
    (blob,) = source.contents
    async with (
        running_peer(memory_path) as peer,
        cutting(peer.bulk) as proxy,
        aclosing(peer.tier()) as tier,
    ):
        peer.addresses["bulk"] = proxy.address
        incoming = peer.ram.create(blob)
        os.pwrite(incoming.fd, bytes(8 << 20), 0)
        incoming.landed(8 << 20)
        incoming.keep()
        await tier.store([blob], source)
        assert await peer.ram.missing([blob]) == set()
        assert sum(proxy.passed) >= SIZE


def test_a_beginning_that_changed_in_memory_is_not_gone_on_with(memory_path: Path, source: MemoryBlobs) -> None:
    content = content_in(memory_path, "a")
    ((blob, whole),) = source.contents.items()
    begin(content, blob, whole[: 8 << 20])
    (name,) = os.listdir(f"{memory_path}/a/incoming")
    with open(f"{memory_path}/a/incoming/{name}", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    incoming = content.create(blob)
    assert incoming.offset == 0
    incoming.discard()


def test_what_landed_is_told_with_its_digest(memory_path: Path, source: MemoryBlobs) -> None:
    content = content_in(memory_path, "a")
    ((blob, whole),) = source.contents.items()
    assert content.partial(blob) is None
    begin(content, blob, whole[: 8 << 20])
    assert content.partial(blob) == Partial(8 << 20, hash_bytes(whole[: 8 << 20]).digest)
    incoming = content.create(blob)
    assert incoming.offset == 8 << 20
    os.pwrite(incoming.fd, whole[8 << 20 :], 8 << 20)
    incoming.accept()
    assert content.has(blob)
    assert content.partial(blob) is None
    assert os.listdir(f"{memory_path}/a/incoming") == []


def test_room_that_beginnings_and_spares_take_is_given_up_for_what_comes(
    memory_path: Path, source: MemoryBlobs
) -> None:
    content, spares = content_in(memory_path, "a"), Spares(Layout(f"{memory_path}/a"))
    ((blob, whole),) = source.contents.items()
    begin(content, blob, whole[: 8 << 20])
    with spares.begin(1 << 20) as spare:
        assert spare.finish()
    with pytest.raises(TierFull):
        content.create(Blob(bytes(16), 1 << 62))
    assert content.partial(blob) is None
    assert spares.sizes() == []
    assert os.listdir(f"{memory_path}/a/incoming") == []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestPartials:
    def keep(self, partials: Partials, directory: Path, numbers: Collection[int], size: int = SMALLEST_KEPT) -> None:
        for number in numbers:
            path = directory / f"{number}-{size}"
            path.touch()
            partials.keep(Blob(number.to_bytes(16), 1 << 30), str(path), Partial(size, bytes(16)))

    def test_they_are_kept_for_a_while(self, tmp_path: Path) -> None:
        clock = Clock()
        partials = Partials(clock)
        self.keep(partials, tmp_path, [1])
        clock.now += 100
        self.keep(partials, tmp_path, [2])
        assert partials.expire() == 0
        clock.now += 21
        assert partials.expire() == 1 << 30
        assert [path.name for path in tmp_path.iterdir()] == [f"2-{SMALLEST_KEPT}"]

    def test_only_so_many_are_kept_the_latest(self, tmp_path: Path) -> None:
        partials = Partials()
        self.keep(partials, tmp_path, range(200))
        kept = {int(path.name.partition("-")[0]) for path in tmp_path.iterdir()}
        assert kept == set(range(200 - len(kept), 200))
        assert len(kept) < 100

    def test_of_two_beginnings_the_larger_one_is_kept(self, tmp_path: Path) -> None:
        partials = Partials()
        for size in (SMALLEST_KEPT, 2 * SMALLEST_KEPT, SMALLEST_KEPT + 1):
            self.keep(partials, tmp_path, [1], size)
        assert [path.name for path in tmp_path.iterdir()] == [f"1-{2 * SMALLEST_KEPT}"]

    def test_what_was_handed_out_is_nobody_elses(self, tmp_path: Path) -> None:
        partials = Partials()
        self.keep(partials, tmp_path, [1])
        assert partials.take(Blob((1).to_bytes(16), 1 << 30)) is not None
        assert partials.take(Blob((1).to_bytes(16), 1 << 30)) is None
        assert partials.give_up() == 0
        assert len(list(tmp_path.iterdir())) == 1


def test_beginnings_travel_as_they_are() -> None:
    blobs = [hash_bytes(bytes([number]) * 100) for number in range(3)]
    begun = {blobs[2]: Partial(10, bytes(16))}
    assert partials_from_wire(blobs, partials_to_wire(blobs, begun.get)) == begun


@pytest.mark.parametrize(
    "message",
    [
        pb.Partial(index=1, size=10, digest=bytes(16)),
        pb.Partial(index=0, size=0, digest=bytes(16)),
        pb.Partial(index=0, size=100, digest=bytes(16)),
        pb.Partial(index=0, size=10, digest=bytes(15)),
    ],
)
def test_beginnings_that_are_none_are_refused(message: pb.Partial) -> None:
    with pytest.raises(InvalidRequest):
        partials_from_wire([hash_bytes(bytes(100))], [message])


def test_the_hash_of_a_beginning_is_that_of_these_bytes(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(3 << 20)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        for size in (0, 1, 1 << 20, (2 << 20) + 5, 3 << 20, 4 << 20):
            assert hash_beginning(file.fileno(), size) == hash_bytes(content[:size]).digest
