"""Bulk streams between a real server and a real client on loopback."""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_tier.blobs import Blob, Incoming, Sink, Source
from fuse_tier.errors import ConfigError, Damaged, NotFound, TierFull, TierRefused, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.content import RamContent
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.client import Grant, pull, push
from fuse_tier.wire.bulk.format import Answer, Outcome
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.bulk.streams import Stream, StreamBroken
from fuse_tier.wire.bulk.transfer import Receipt
from fuse_tier.wire.tls import TlsFiles, client_context
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding
from tests.wire.certificates import Certificates, make_certificates

SIZES = (0, 1, 4096, 65_535, 65_536, 65_537, 262_144, 1 << 20, (1 << 20) + 1, (9 << 20) + 7)


@dataclass(slots=True)
class Server:
    """What listens, as tests see it."""

    address: str
    sessions: Sessions
    store: MemoryBlobs

    def grant(
        self,
        direction: Direction,
        blobs: Sequence[Blob],
        tls: TlsFiles | None = None,
        *,
        caller: str | None = None,
        encrypted: bool | None = None,
    ) -> Grant:
        """A session as the control call would grant it."""
        wanted = tls is not None if encrypted is None else encrypted
        caller = "a" if caller is None and tls is not None else caller
        return Grant(self.address, self.sessions.grant(Session(caller, direction, tuple(blobs), wanted)), tls)


@asynccontextmanager
async def running_server(
    tls: TlsFiles | None = None, *, max_streams: int = 8, source: Source | None = None, sink: Sink | None = None
) -> AsyncIterator[Server]:
    """Listens until the block ends."""
    store, sessions = MemoryBlobs(), Sessions()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(
            partial(serve_bulk, "127.0.0.1:0", sessions, source or store, sink or store, tls, max_streams=max_streams)
        )
        yield Server(f"127.0.0.1:{port}", sessions, store)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def secure(certificates: Certificates) -> AsyncIterator[Server]:
    async with running_server(certificates.b) as server:
        yield server


@pytest.fixture
def threads() -> trio.CapacityLimiter:
    return trio.CapacityLimiter(4)


def contents_of(sizes: Sequence[int], rng: random.Random) -> MemoryBlobs:
    return holding(rng.randbytes(size) for size in sizes)


async def send(server: Server, source: MemoryBlobs, tls: TlsFiles | None = None) -> Receipt:
    """Pushes everything of a source in one session."""
    blobs = list(source.contents)
    grant = server.grant(Direction.PUSH, blobs, tls)
    return await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))


async def receive(server: Server, blobs: Sequence[Blob], sink: MemoryBlobs, tls: TlsFiles | None = None) -> Receipt:
    """Pulls blobs in one session."""
    receipt = Receipt()
    grant = server.grant(Direction.PULL, blobs, tls)
    await pull(grant, blobs, sink, no_progress, trio.CapacityLimiter(1), receipt)
    return receipt


async def check_alive(server: Server) -> None:
    """It serves the next one as if nothing had happened."""
    source = holding([b"still alive"])
    assert (await send(server, source)).arrived == source.contents.keys()


# ---- what arrives ----


@pytest.mark.parametrize("encrypted", [False, True])
async def test_files_of_all_sizes_go_there_and_back_in_any_order(
    server: Server, secure: Server, certificates: Certificates, rng: random.Random, encrypted: bool
) -> None:
    to, tls = (secure, certificates.a) if encrypted else (server, None)
    sizes = [*SIZES, *(rng.randrange(200_000) for _ in range(40))]
    rng.shuffle(sizes)
    source, sink = contents_of(sizes, rng), MemoryBlobs()
    blobs = list(source.contents)
    pushed = await send(to, source, tls)
    assert pushed.arrived == set(blobs)
    assert pushed.failed == {}
    assert to.store.contents == source.contents
    pulled = await receive(to, blobs[::-1], sink, tls)
    assert pulled.arrived == set(blobs)
    assert sink.contents == source.contents


async def test_a_server_with_certificates_takes_a_session_in_the_clear_when_it_was_granted_so(
    secure: Server, certificates: Certificates
) -> None:
    source = holding([b"0123"])
    blobs = list(source.contents)
    grant = secure.grant(Direction.PUSH, blobs, caller="a", encrypted=False)
    receipt = await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))
    assert receipt.arrived == set(blobs)


@pytest.mark.parametrize("size", [100, 3 << 20])
async def test_a_file_that_became_shorter_or_other_is_found_by_the_receiver(server: Server, size: int) -> None:
    blob = hash_bytes(bytes(size))
    other = hash_bytes(b"fine")
    for wrong in (b"1" + bytes(size - 1), b"1" * (size // 2)):
        source = ReadsAsItIs({blob: wrong, other: b"fine"})
        receipt = await push(
            server.grant(Direction.PUSH, [blob, other]), [blob, other], source, no_progress, trio.CapacityLimiter(1)
        )
        assert receipt.arrived == {other}
        assert isinstance(receipt.failed[blob], Damaged)
        assert receipt.torn == {blob}
        assert server.store.contents == {other: b"fine"}


class ReadsAsItIs:
    """A source that does not look at what it opens."""

    def __init__(self, contents: dict[Blob, bytes]) -> None:
        self.contents = contents

    def open(self, blob: Blob) -> int:
        fd = os.memfd_create(blob.name)
        os.write(fd, self.contents[blob])
        return fd


async def test_what_a_source_lacks_and_what_does_not_fit_is_told_and_the_rest_arrives() -> None:
    here, absent, large = (hash_bytes(content) for content in (b"here", b"absent", b"x" * 2_000_000))
    source = holding([b"here", b"x" * 2_000_000])
    small = MemoryBlobs(capacity=1000)
    async with running_server(sink=small) as server:
        blobs = [large, absent, here]
        receipt = await push(server.grant(Direction.PUSH, blobs), blobs, source, no_progress, trio.CapacityLimiter(1))
        assert receipt.arrived == {here}
        assert isinstance(receipt.failed[absent], NotFound)
        assert isinstance(receipt.failed[large], TierFull)
        server.store.contents |= source.contents
        pulled = await receive(server, blobs, MemoryBlobs(capacity=1000))
        assert pulled.arrived == {here}
        assert isinstance(pulled.failed[absent], NotFound)
        assert isinstance(pulled.failed[large], TierFull)


# ---- who may ----


async def test_a_token_is_refused_the_second_time(server: Server, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    blobs = list(source.contents)
    grant = server.grant(Direction.PUSH, blobs)
    await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))
    with pytest.raises(TierUnavailable, match="does not know the session any more"):
        await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))


async def test_a_token_of_another_node_is_refused(
    secure: Server, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    blobs = list(source.contents)
    with pytest.raises(TierUnavailable, match="does not know the session"):
        await push(
            secure.grant(Direction.PUSH, blobs, certificates.a, caller="c"),
            blobs,
            source,
            no_progress,
            trio.CapacityLimiter(1),
        )
    assert secure.store.contents == {}


async def test_an_encrypted_session_is_not_begun_in_the_clear(secure: Server, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    blobs = list(source.contents)
    grant = secure.grant(Direction.PUSH, blobs, caller="a", encrypted=True)
    with pytest.raises(TierUnavailable, match="does not know the session"):
        await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))


@pytest.mark.parametrize("bad", ["expired", "intruder", "stranger"])
async def test_a_bad_certificate_gets_nowhere(
    secure: Server, certificates: Certificates, expected_logs: ExpectedLogs, bad: str
) -> None:
    expected_logs.allow("bulk.stream_failed")
    source = holding([b"0123"])
    tls: TlsFiles = getattr(certificates, bad)
    with pytest.raises(TierUnavailable, match=r"the transfer with .* failed"):
        await send(secure, source, tls)
    assert secure.store.contents == {}


async def test_a_server_with_a_bad_certificate_is_not_believed(
    certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")
    async with running_server(certificates.expired) as server:
        outcome = await outcome_of(partial(send, server, holding([b"0123"]), certificates.a))
    assert isinstance(outcome, TierUnavailable)
    assert "its certificate was refused" in str(outcome)


async def outcome_of(call: Callable[[], object]) -> object:
    """What a call returns, or the error that it raises: errors do not leave a nursery as they are."""
    try:
        return await call()  # type: ignore[misc]
    except (TierUnavailable, TierRefused) as error:
        return error


async def test_tls_to_a_server_that_has_none_fails_on_both_sides(
    server: Server, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("bulk.stream_failed")
    with pytest.raises(TierUnavailable):
        await send(server, holding([b"0123"]), certificates.a)
    await check_alive(server)


# ---- who talks nonsense, or stops ----


def raw(server: Server, *parts: bytes) -> bytes:
    """Sends these bytes, ends, and gives what came back. Blocks."""
    host, _, port = server.address.rpartition(":")
    received = bytearray()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                received += chunk
        except OSError:  # it may have hung up on us in the middle
            return bytes(received)
    return bytes(received)


async def send_raw(server: Server, *parts: bytes) -> bytes:
    return await trio.to_thread.run_sync(partial(raw, server, *parts))


@pytest.fixture
def nonsense(expected_logs: ExpectedLogs) -> None:
    """What is no stream of ours is logged."""
    expected_logs.allow("bulk.stream_failed")


@pytest.mark.usefixtures("nonsense")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_garbage_on_the_port_harms_nobody(parts: list[bytes]) -> None:
    async def attempt() -> None:
        async with running_server() as server:
            assert await send_raw(server, *parts) == b""
            await check_alive(server)
            assert list(server.store.contents.values()) == [b"still alive"]

    trio.run(attempt)


@pytest.mark.usefixtures("nonsense")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_follows_a_good_token_nothing_wrong_is_kept(data: st.DataObject) -> None:
    """A valid push with bytes changed, dropped or added."""
    sizes = data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=6))
    source = holding(bytes([number]) * size for number, size in enumerate(sizes))
    blobs = list(source.contents)
    stream = bytearray(
        b"".join(format.encode_header(blob, Outcome.OK) + content for blob, content in source.contents.items())
    )
    start = data.draw(st.integers(0, len(stream)))
    end = data.draw(st.integers(start, min(len(stream), start + 40)))
    stream[start:end] = data.draw(st.binary(max_size=40))

    async def attempt() -> None:
        async with running_server() as server:
            token = server.grant(Direction.PUSH, blobs).token
            answer = await send_raw(server, format.encode_prelude(token), bytes(stream))
            assert answer[: format.ANSWER_BYTES] in (b"", format.encode_answer(Answer.OK))
            assert all(source.contents.get(blob) == content for blob, content in server.store.contents.items())
            await check_alive(server)

    trio.run(attempt)


@pytest.mark.parametrize("size", [1000, 4 << 20])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
async def test_a_client_that_stops_in_the_middle_leaves_nothing(
    memory_path: Path, size: int, part: float, rng: random.Random
) -> None:
    layout = Layout(str(memory_path))
    create_directories(layout)
    ram = RamContent(layout, "ram")
    content = rng.randbytes(size)
    blob = hash_bytes(content)
    async with running_server(source=ram, sink=ram) as server:
        token = server.grant(Direction.PUSH, [blob]).token
        sent = content[: int(size * part)]
        answer = await send_raw(server, format.encode_prelude(token), format.encode_header(blob, Outcome.OK), sent)
        assert answer == format.encode_answer(Answer.OK)
        assert ram.partial(blob) is None  # so little is sent again
        assert os.listdir(layout.incoming) == []
        assert not ram.has(blob)


async def test_another_version_is_told_so(server: Server, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("bulk.stream_failed")
    token = server.grant(Direction.PUSH, []).token
    prelude = bytearray(format.encode_prelude(token))
    prelude[4] += 1
    assert await send_raw(server, bytes(prelude)) == format.encode_answer(Answer.OTHER_VERSION)


async def test_a_connection_that_says_nothing_is_no_event(server: Server) -> None:
    assert await send_raw(server) == b""
    await check_alive(server)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", TierUnavailable, "ended the stream in the middle"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TierRefused, "no bulk port of fuse-tier"),
        (format.encode_answer(Answer.OTHER_VERSION), TierRefused, "another version"),
        (format.encode_answer(Answer.OK), TierUnavailable, "ended the stream in the middle"),
        (format.encode_answer(Answer.OK) + b"\xff" * 100, TierRefused, "something else came"),
    ],
    ids=["nothing", "http", "version", "ends early", "garbage"],
)
async def test_a_server_that_is_none_of_ours_is_a_clear_error(
    answer: bytes, kind: type[Exception], words: str, threads: trio.CapacityLimiter
) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(say, answer), 0, host="127.0.0.1"))
        grant = Grant(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", bytes(32), None)
        for blobs in ([hash_bytes(b"0123")],):
            sink = MemoryBlobs()
            outcome = await outcome_of(partial(pull, grant, blobs, sink, no_progress, threads, Receipt()))
            assert isinstance(outcome, kind), outcome
            assert words in str(outcome)
            assert grant.address in str(outcome)
            assert sink.contents == {}
        nursery.cancel_scope.cancel()


async def test_what_arrived_before_a_stream_was_lost_counts(threads: trio.CapacityLimiter) -> None:
    first, second = hash_bytes(b"0123"), hash_bytes(b"4567")
    answer = format.encode_answer(Answer.OK) + format.encode_header(first, Outcome.OK) + b"0123"
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(say, answer), 0, host="127.0.0.1"))
        grant = Grant(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", bytes(32), None)
        sink, receipt = MemoryBlobs(), Receipt()
        await outcome_of(partial(pull, grant, [first, second], sink, no_progress, threads, receipt))
        assert receipt.arrived == {first}
        assert receipt.failed == {}
        assert sink.contents == {first: b"0123"}
        nursery.cancel_scope.cancel()


async def say(answer: bytes, stream: trio.SocketStream) -> None:
    await stream.receive_some(format.PRELUDE_BYTES)
    await stream.send_all(answer)
    await stream.aclose()


async def test_nobody_listening_is_said_with_the_address(threads: trio.CapacityLimiter) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TierUnavailable, match=f"{address} does not answer: connection refused"):
            await push(Grant(address, bytes(32), None), [], MemoryBlobs(), no_progress, threads)
    with pytest.raises(TierUnavailable, match=r"no-such-host.invalid:1 can not be resolved"):
        await push(Grant("no-such-host.invalid:1", bytes(32), None), [], MemoryBlobs(), no_progress, threads)


async def test_a_port_in_use_is_a_config_error_that_names_it(server: Server) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {server.address}: the port is already in use"):
        await serve_bulk(server.address, Sessions(), MemoryBlobs(), MemoryBlobs(), None)


# ---- limits, stalls, cancellation ----


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

    def test_a_handshake_that_nobody_answers_breaks(
        self, ends: tuple[socket.socket, socket.socket], certificates: Certificates
    ) -> None:
        ours, theirs = ends
        stream = Stream(ours, 0.05)
        with pytest.raises(StreamBroken, match="no byte moved"):
            stream.encrypt(client_context(certificates.a), "fuse-tier")
        assert isinstance(stream.secured, ssl.SSLSocket)
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
