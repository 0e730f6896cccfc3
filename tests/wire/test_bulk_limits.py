"""Bulk streams at their limits: too many of them, stalled, cancelled, and one by itself."""

from __future__ import annotations

import os
import random
import socket
import threading
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob, Incoming
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.client import Grant, push
from fuse_tier.wire.bulk.format import Answer
from fuse_tier.wire.bulk.sessions import Direction
from fuse_tier.wire.bulk.streams import Stream, StreamBroken
from fuse_tier.wire.bulk.transfer import Receipt
from fuse_tier.wire.tls import client_context
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding
from tests.wire.bulk import contents_of, receive, running_server, send
from tests.wire.certificates import Certificates


class Gated:
    """A sink that makes room only when it is told to."""

    def __init__(self) -> None:
        self.store = MemoryBlobs()
        self.reached = threading.Event()
        self.gate = threading.Event()

    def create(self, blob: Blob) -> Incoming:
        self.reached.set()
        self.gate.wait()
        return self.store.create(blob)


async def test_more_streams_than_there_are_places_are_refused(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_refused")
    sink, source = Gated(), holding([b"0123"])
    async with running_server(max_streams=1, sink=sink) as server, trio.open_nursery() as nursery:
        nursery.start_soon(send, server, source)
        await trio.to_thread.run_sync(sink.reached.wait)
        with pytest.raises(TierUnavailable):
            await send(server, source)
        sink.gate.set()
    assert sink.store.contents == source.contents


async def test_a_flood_of_streams_is_bounded_counted_and_told_once(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_refused")
    counted = partial(
        metrics.REGISTRY.get_sample_value, "fuse_tier_rejected_connections_total", {"reason": "too_many"}
    )
    before = counted() or 0.0
    async with running_server(max_strangers=8) as server:
        host, _, port = server.address.rpartition(":")
        streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(42)]  # of one host: a quarter
        for stream in streams[2:]:
            assert await stream.receive_some(1) == b""  # it was closed at once
        assert counted() == before + 40
        for stream in streams:
            await stream.aclose()
    (line,) = [line for line in expected_logs.heard if line.event == "bulk.stream_refused"]
    assert "address='127.0.0.1:" in line.text


async def test_a_flood_of_strangers_takes_nothing_from_streams_of_other_hosts(
    expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    expected_logs.allow("bulk.stream_refused", "bulk.stream_failed")
    monkeypatch.setattr(Deadline, "BULK_CONNECT", 60.0)  # none of them leaves by itself
    sink, source, outcomes = Gated(), contents_of([4096, 2 << 20], rng), list[Receipt]()
    async with running_server(max_streams=2, max_strangers=8, sink=sink, source=source) as server:
        port = int(server.address.rpartition(":")[2])

        async def push_all() -> None:
            outcomes.append(await send(server, source))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push_all)
            try:
                await trio.to_thread.run_sync(sink.reached.wait)
                strangers = [
                    await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2") for _ in range(40)
                ]
                for stranger in strangers[2:]:
                    assert await stranger.receive_some(1) == b""  # all places that its host can have are taken
                restored = MemoryBlobs()
                assert (await receive(server, list(source.contents), restored)).arrived == source.contents.keys()
            finally:
                sink.gate.set()  # and that which had begun before goes on
        (receipt,) = outcomes
        assert receipt.arrived == source.contents.keys()
        for stranger in strangers:
            await stranger.aclose()
    assert sink.store.contents == restored.contents == source.contents


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_cancelled_push_ends_on_both_sides_and_leaves_at_most_a_beginning_that_is_kept(
    memory_path: Path,
    certificates: Certificates,
    threads: trio.CapacityLimiter,
    rng: random.Random,
    encrypted: bool,
) -> None:
    layout = Layout(str(memory_path))
    create_directories(layout)
    ram = RamContent(layout, "ram")
    source = contents_of([64 << 20], rng)
    blobs = list(source.contents)
    tls = certificates.a if encrypted else None
    moving = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def progress(moved: int) -> None:
        token.run_sync_soon(moving.set)

    async with running_server(certificates.b if encrypted else None, source=ram, sink=ram) as server:
        grant = server.grant(Direction.PUSH, blobs, tls)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push, grant, blobs, source, progress, threads)
            await moving.wait()
            nursery.cancel_scope.cancel()
        assert threads.borrowed_tokens == 0
        ram.partials.give_up()
        assert os.listdir(layout.incoming) == []
        assert not ram.has(blobs[0])


async def test_a_server_that_ends_takes_its_streams_with_it(threads: trio.CapacityLimiter) -> None:
    blob = hash_bytes(b"0123")

    async def connect() -> None:
        async with running_server() as server:
            grants.append(server.grant(Direction.PUSH, [blob]))
            stream = await trio.open_tcp_stream("127.0.0.1", int(server.address.rpartition(":")[2]))
            await stream.send_all(format.encode_prelude(grants[0].token))
            assert await stream.receive_some(100) == format.encode_answer(Answer.OK)
            streams.append(stream)

    grants: list[Grant] = []
    streams: list[trio.SocketStream] = []
    await connect()
    async with streams[0] as stream:
        assert await stream.receive_some(100) == b""


class TestStream:
    @pytest.fixture
    def ends(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        return ours, theirs

    def test_a_stream_on_which_nothing_moves_breaks(self, ends: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = ends
        stream = Stream(ours, 0.05)
        file = os.memfd_create("landing")
        try:
            with pytest.raises(StreamBroken, match=r"no byte moved for 0\.05 s"):
                stream.receive_exactly(1)
            with pytest.raises(StreamBroken, match="no byte moved"):
                stream.receive_file(file, 0, 2 << 20, no_progress)
            with pytest.raises(StreamBroken, match="no byte moved"):
                stream.send(bytes(64 << 20))
            os.truncate(file, 64 << 20)
            with pytest.raises(StreamBroken, match="no byte moved"):
                stream.send_file(file, 0, 64 << 20, no_progress)
        finally:
            os.close(file)
            stream.close()
            theirs.close()

    def test_content_that_comes_more_slowly_than_it_is_waited_for_is_not_lost(
        self, ends: tuple[socket.socket, socket.socket], rng: random.Random
    ) -> None:
        ours, theirs = ends
        stream = Stream(ours, 0.5)
        beginning, file = rng.randbytes(300 << 10), os.memfd_create("landing")
        told: list[int] = []
        theirs.sendall(beginning)
        try:
            with pytest.raises(StreamBroken, match="no byte moved"):
                stream.receive_file(file, 0, 2 << 20, told.append)
            assert sum(told) == len(beginning)
            assert os.pread(file, 2 << 20, 0) == beginning
        finally:
            os.close(file)
            stream.close()
            theirs.close()

    def test_content_is_waited_for_in_large_parts_and_what_follows_it_byte_by_byte(
        self, ends: tuple[socket.socket, socket.socket], rng: random.Random
    ) -> None:
        ours, theirs = ends
        stream = Stream(ours, 60)
        content, file = rng.randbytes(3 << 20), os.memfd_create("landing")
        awaited: list[int] = []

        def landed(_: int) -> None:
            awaited.append(ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))

        sending = threading.Thread(target=theirs.sendall, args=(content + b"a header",))
        sending.start()
        try:
            stream.receive_file(file, 0, len(content), landed)
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
            assert stream.receive_exactly(len(b"a header")) == b"a header"
            assert os.pread(file, len(content), 0) == content
            assert awaited[0] == 512 << 10
        finally:
            stream.interrupt()
            sending.join()
            os.close(file)
            stream.close()
            theirs.close()

    def test_a_handshake_that_nobody_answers_breaks(
        self, ends: tuple[socket.socket, socket.socket], certificates: Certificates
    ) -> None:
        ours, theirs = ends
        stream = Stream(ours, 0.05)
        with pytest.raises(StreamBroken, match="no byte moved"):
            stream.encrypt(client_context(certificates.a), "fuse-tier")
        assert stream.encrypted
        stream.close()
        theirs.close()

    def test_an_interruption_is_not_missed_whenever_it_comes(
        self, ends: tuple[socket.socket, socket.socket], certificates: Certificates
    ) -> None:
        ours, theirs = ends
        stream = Stream(ours, 60)
        stream.interrupt()
        with pytest.raises(StreamBroken):
            stream.encrypt(client_context(certificates.a), "fuse-tier")
        with pytest.raises(StreamBroken):
            stream.receive_exactly(1)
        stream.close()
        theirs.close()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_in_the_clear_no_byte_of_a_large_file_passes_through_the_process(
    memory_path: Path,
    certificates: Certificates,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    encrypted: bool,
) -> None:
    moved = {"sendfile": 0, "splice": 0}

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> int:
            count: int = real(*arguments, **named)
            moved[name] += count
            return count

        monkeypatch.setattr(os, name, call)

    watched("sendfile")
    watched("splice")
    layout = Layout(str(memory_path))
    create_directories(layout)
    ram = RamContent(layout, "ram")
    source = contents_of([(9 << 20) + 7], rng)
    tls = (certificates.a, certificates.b) if encrypted else (None, None)
    async with running_server(tls[1], source=ram, sink=ram) as server:
        assert (await send(server, source, tls[0])).arrived == source.contents.keys()
    if encrypted:
        assert moved == {"sendfile": 0, "splice": 0}
    else:
        assert moved["sendfile"] == (9 << 20) + 7
        assert moved["splice"] > 2 * (8 << 20)  # into the pipe and out of it; what is left at the end is read
