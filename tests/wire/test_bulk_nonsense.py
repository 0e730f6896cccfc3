"""What talks nonsense to a bulk stream, or stops in the middle, harms nobody."""

from __future__ import annotations

import os
import random
import socket
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_tier import metrics
from fuse_tier.blobs import Partial
from fuse_tier.errors import ConfigError, TierRefused, TierUnavailable
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
from fuse_tier.wire.bulk.transfer import Receipt
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import holding
from tests.wire.bulk import Server, check_alive, outcome_of, running_server


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


def turned_away() -> float:
    """How many were, for whatever reason."""
    found = metrics.REGISTRY.collect()
    return sum(
        sample.value
        for family in found
        for sample in family.samples
        if sample.name == "fuse_tier_rejected_connections_total"
    )


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
            before = turned_away()
            assert await send_raw(server, *parts) == b""
            assert turned_away() == before + any(parts)
            await check_alive(server)
            assert list(server.store.contents.values()) == [b"still alive"]

    trio.run(attempt)


@pytest.mark.usefixtures("nonsense")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_follows_a_good_token_nothing_wrong_is_kept(data: st.DataObject) -> None:
    """A push with bytes changed, dropped or added, perhaps of the rest of a blob, to a sink that may have no room."""
    sizes = data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=6))
    source = holding(bytes([number]) * size for number, size in enumerate(sizes))
    blobs = list(source.contents)
    offset = data.draw(st.just(0) | st.integers(0, 3001) | st.integers(0, (1 << 64) - 1))
    stream = bytearray(
        b"".join(format.encode_header(blob, Outcome.OK, offset) + source.contents[blob] for blob in blobs)
    )
    sink = MemoryBlobs(data.draw(st.sampled_from([None, 0, 1000])))
    start = data.draw(st.integers(0, len(stream)))
    end = data.draw(st.integers(start, min(len(stream), start + 40)))
    stream[start:end] = data.draw(st.binary(max_size=40))

    async def attempt() -> None:
        async with running_server(sink=sink) as server:
            token = server.grant(Direction.PUSH, blobs).token
            answer = await send_raw(server, format.encode_prelude(token), bytes(stream))
            assert answer[: format.ANSWER_BYTES] in (b"", format.encode_answer(Answer.OK))
            assert all(source.contents.get(blob) == content for blob, content in sink.contents.items())
            sink.capacity = None
            await check_alive(server)

    trio.run(attempt)


OFFSETS = [1, 999, 1000, 1001, 1 << 63, (1 << 64) - 1]  # of a blob of 1000 bytes that nobody has begun with


@pytest.mark.parametrize("offset", OFFSETS)
async def test_the_rest_of_what_nobody_has_the_beginning_of_ends_the_stream_also_where_there_is_no_room(
    expected_logs: ExpectedLogs, offset: int
) -> None:
    expected_logs.allow("bulk.stream_failed")
    blob, follows = hash_bytes(bytes(1000)), bytes(100)
    async with running_server(sink=MemoryBlobs(capacity=100)) as server:
        token = server.grant(Direction.PUSH, [blob]).token
        header = format.encode_header(blob, Outcome.OK, offset)
        answer = await send_raw(server, format.encode_prelude(token), header + follows)
        assert answer == format.encode_answer(Answer.OK)
        (line,) = expected_logs.heard
        assert f"goes on at {offset}, and 0 bytes of it are here" in line.text
        await check_alive(server)


@pytest.mark.parametrize("offset", OFFSETS)
async def test_a_server_that_sends_the_rest_of_what_we_have_not_begun_with_breaks_the_protocol(
    threads: trio.CapacityLimiter, offset: int
) -> None:
    blobs = [hash_bytes(bytes(1000)), hash_bytes(b"0123")]
    answer = format.encode_answer(Answer.OK) + format.encode_header(blobs[0], Outcome.OK, offset) + bytes(100)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(say, answer), 0, host="127.0.0.1"))
        grant = Grant(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", bytes(32), None)
        small = MemoryBlobs(capacity=100)
        outcome = await outcome_of(partial(pull, grant, blobs, small, no_progress, threads, Receipt()))
        assert isinstance(outcome, TierRefused)
        assert f"goes on at {offset}" in str(outcome)
        nursery.cancel_scope.cancel()


async def test_the_rest_of_what_was_begun_with_is_passed_over_where_there_is_no_room_any_more() -> None:
    large, small = hash_bytes(bytes(1000)), hash_bytes(b"0123")
    begun = {large: Partial(600, hash_bytes(bytes(600)).digest)}
    sink = MemoryBlobs(capacity=100)
    async with running_server(sink=sink) as server:
        token = server.sessions.grant(Session(None, Direction.PUSH, (large, small), encrypted=False, begun=begun))
        rest = format.encode_header(large, Outcome.OK, 600) + bytes(400)
        stream = rest + format.encode_header(small, Outcome.OK) + b"0123"
        answer = await send_raw(server, format.encode_prelude(token), stream)
        assert answer.startswith(format.encode_answer(Answer.OK) + bytes([Outcome.FULL]))
        assert answer.endswith(format.encode_verdict(None))
    assert sink.contents == {small: b"0123"}


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
