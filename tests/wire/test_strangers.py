"""Who has no business here: turned away at either port, told once with the address, counted, and nothing changed."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import structlog.testing
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError, InvalidRequest, TierRefused, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.manifest import encode
from fuse_tier.members import Location, Member
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk import format
from fuse_tier.wire.bulk.format import Outcome, encode_blob
from fuse_tier.wire.bulk.sessions import Direction, Session
from fuse_tier.wire.control_pb2_grpc import PeerStub, add_PeerServicer_to_server
from fuse_tier.wire.door import Door
from fuse_tier.wire.grpc import Caller, Client, serve
from fuse_tier.wire.listening import listen_tcp
from fuse_tier.wire.members import PROTOCOL
from fuse_tier.wire.rejections import Rejections
from fuse_tier.wire.strangers import Strangers
from fuse_tier.wire.tls import TlsFiles, client_context
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import GEMMA, check_producible, keep, manifest_of
from tests.harness.waiting import until
from tests.wire.certificates import Certificates
from tests.wire.peers import CLUSTER, Peer

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def rejected(kind: str) -> float:
    return metrics.REGISTRY.get_sample_value("fuse_tier_rejected_connections_total", {"reason": kind}) or 0.0


def everything_below(path: str) -> set[str]:
    return {os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names}


class Told:
    """What a stranger's visit has to come to, and that everybody else is served as before."""

    def __init__(self, peer: Peer, certificates: Certificates, logs: ExpectedLogs) -> None:
        self._peer = peer
        self._certificates = certificates
        self._logs = logs

    async def _is_told(self) -> bool:
        return bool(self._logs.unannounced())

    async def once(self, event: str, kind: str, visit: Callable[[], Awaitable[object]]) -> None:
        before, files = rejected(kind), everything_below(self._peer.layout.root)
        await visit()
        await until(self._is_told)
        (line,) = self._logs.unannounced()
        assert line.event == event
        assert "address='127.0.0.1:" in line.text
        assert f"kind='{kind}'" in line.text
        assert rejected(kind) == before + 1
        assert everything_below(self._peer.layout.root) == files
        self._logs.allow(event)
        async with aclosing(self._peer.tier(self._certificates.a)) as tier:
            await keep(tier, {"weights": b"0123"})
            await check_producible(tier)


@pytest.fixture
def told(peer: Peer, certificates: Certificates, expected_logs: ExpectedLogs) -> Told:
    return Told(peer, certificates, expected_logs)


async def fails(kind: type[Exception], call: Callable[[], Awaitable[object]]) -> None:
    """Within a nursery."""
    try:
        await call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was due")


async def send_raw(address: str, content: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Sends these bytes, ends, and gives what came back."""

    def talk() -> bytes:
        host, _, port = address.rpartition(":")
        received = b""
        plain = socket.create_connection((host, int(port)), timeout=10)
        with tls.wrap_socket(plain, server_hostname="fuse-tier") if tls else plain as connection:
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(1 << 16):
                    received += chunk
            except OSError:  # it has hung up on us
                return received
        return received

    return await trio.to_thread.run_sync(talk)


def without_certificate(files: TlsFiles) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files.ca)


# ---- certificates ----


@pytest.mark.parametrize("bad", ["expired", "intruder"])
async def test_a_bad_certificate_gets_nowhere_at_the_control_port(
    peer: Peer, certificates: Certificates, told: Told, bad: str
) -> None:
    async with Client(peer.control, PeerStub, getattr(certificates, bad)) as client:
        hello = partial(client.call, "Hello", pb.HelloRequest(), 5)
        await told.once("control.connection_refused", "certificate", partial(fails, TierUnavailable, hello))


async def test_without_a_certificate_nobody_gets_anywhere_at_the_control_port(
    peer: Peer, certificates: Certificates, told: Told
) -> None:
    visit = partial(send_raw, peer.control, b"PRI * HTTP/2.0\r\n\r\n", without_certificate(certificates.a))
    await told.once("control.connection_refused", "certificate", visit)


async def test_without_tls_nobody_gets_anywhere_at_the_control_port(peer: Peer, told: Told) -> None:
    async with Client(peer.control, PeerStub, None) as client:
        hello = partial(client.call, "Hello", pb.HelloRequest(), 5)
        await told.once("control.connection_refused", "nonsense", partial(fails, TierUnavailable, hello))


async def test_without_a_certificate_nobody_gets_anywhere_at_the_bulk_port(
    peer: Peer, certificates: Certificates, told: Told
) -> None:
    visit = partial(send_raw, peer.bulk, bytes(100), without_certificate(certificates.a))
    await told.once("bulk.stream_failed", "certificate", visit)


@pytest.mark.parametrize("bad", ["expired", "intruder"])
async def test_a_bad_certificate_gets_nowhere_at_the_bulk_port(
    peer: Peer, certificates: Certificates, told: Told, bad: str
) -> None:
    visit = partial(send_raw, peer.bulk, bytes(100), client_context(getattr(certificates, bad)))
    await told.once("bulk.stream_failed", "certificate", visit)


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"cluster": "other"}, "cluster"), ({"protocol": PROTOCOL + 1}, "protocol"), ({"node": "c"}, "certificate")],
)
async def test_a_node_of_another_configuration_is_refused(
    peer: Peer, certificates: Certificates, told: Told, change: dict[str, object], kind: str
) -> None:
    fields: dict[str, object] = {"protocol": PROTOCOL, "cluster": CLUSTER, "node": "a", "instance": "a-1"}
    async with Client(peer.control, PeerStub, certificates.a) as client:
        hello = partial(client.call, "Hello", pb.HelloRequest(**fields | change), 5)  # type: ignore[arg-type]
        await told.once("peer.refused", kind, partial(fails, FuseTierError, hello))


async def test_the_inner_socket_serves_nobody_who_did_not_come_by_the_door(expected_logs: ExpectedLogs) -> None:
    class Servicer:
        async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802
            raise AssertionError("nobody may get here")

    def abstract_sockets() -> set[str]:
        return {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@fuse-tier-" in line}

    before = abstract_sockets()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, [(add_PeerServicer_to_server, Servicer())], "127.0.0.1:0", None))
        (name,) = abstract_sockets() - before
        async with Client(f"unix-abstract:{name[1:]}", PeerStub, None) as client:
            await fails(TierUnavailable, partial(client.call, "Hello", pb.HelloRequest(), 5))
        nursery.cancel_scope.cancel()


# ---- nodes of our own that do what is not theirs ----


@pytest.mark.parametrize(
    ("owners", "words"),
    [
        ({"c"}, "c has its volume mounted"),
        (set(), "nobody has its volume mounted"),
        ({"a", "c"}, "a and c has its volume mounted"),
    ],
)
async def test_a_node_gives_up_no_snapshot_of_a_volume_that_another_has_or_nobody(
    peer: Peer, certificates: Certificates, told: Told, owners: set[str], words: str
) -> None:
    theirs = await keep(peer.ram, {"weights": b"theirs"}, identity=GEMMA)
    peer.owners[GEMMA] = owners
    async with aclosing(peer.tier(certificates.a)) as hostile:

        async def drop() -> None:
            with pytest.raises(TierRefused, match=words):
                await hostile.drop(theirs.id)

        await told.once("peer.refused", "owner", drop)
        assert await peer.ram.manifest(theirs.id) == theirs
        await check_producible(peer.ram)
        peer.owners[GEMMA] = {"a"}
        await hostile.drop(theirs.id)
    assert theirs.id not in await peer.ram.snapshots()


@pytest.mark.parametrize(
    ("owners", "words"),
    [({"c"}, "c has the volume mounted by now"), (set(), "nobody has the volume mounted, c had it when")],
)
async def test_a_node_brings_in_no_newer_snapshot_of_a_volume_that_is_not_its_own(
    peer: Peer, certificates: Certificates, told: Told, owners: set[str], words: str
) -> None:
    """It would be restored next, and would have what is older given up."""
    theirs = await keep(peer.ram, {"weights": b"theirs"}, identity=GEMMA)
    peer.owners[GEMMA] = owners
    peer.locations[GEMMA] = Location(((_member("a"), (1, 2)), (_member("c"), (1,))), owners={0: "c"})
    forged = manifest_of({"weights": b"theirs"}, 2, GEMMA, node="c")
    async with aclosing(peer.tier(certificates.a)) as hostile:

        async def commit() -> None:
            with pytest.raises(TierRefused, match=words):
                await hostile.commit(forged)

        await told.once("peer.refused", "owner", commit)
        assert [one for one in await peer.ram.snapshots() if one.identity == GEMMA] == [theirs.id]
        peer.owners[GEMMA] = {"a"}
        await hostile.commit(forged)


def _member(name: str) -> Member:
    return Member(name, f"{name}-1", "127.0.0.1:1", "127.0.0.1:2", alive=True)


# ---- tokens ----


async def test_a_token_that_was_never_granted_or_used_or_has_expired_begins_nothing(
    peer: Peer, certificates: Certificates, told: Told, expected_logs: ExpectedLogs
) -> None:
    blob = hash_bytes(b"0123")
    session = Session(None, Direction.PUSH, (blob,), encrypted=False)
    stream = format.encode_header(blob, Outcome.OK) + b"0123"
    used = peer.sessions.grant(session)
    await send_raw(peer.bulk, format.encode_prelude(used) + b"other bytes than were due, and more of them")
    assert len(expected_logs.unannounced()) == 1
    expected_logs.allow("bulk.stream_failed")
    before = rejected("token")
    for token in (bytes(32), used):
        await send_raw(peer.bulk, format.encode_prelude(token) + stream)
    assert rejected("token") == before + 2
    assert await peer.ram.missing([blob]) == {blob}


async def test_an_expired_token_begins_nothing(peer: Peer, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = hash_bytes(b"never")
    with monkeypatch.context() as patch:
        patch.setattr("fuse_tier.wire.bulk.sessions.UNUSED_SECONDS", 0.0)
        token = peer.sessions.grant(Session(None, Direction.PUSH, (blob,), encrypted=False))
    visit = partial(send_raw, peer.bulk, format.encode_prelude(token) + format.encode_header(blob, Outcome.OK))
    await told.once("bulk.stream_failed", "token", visit)


# ---- what is said ----


async def test_a_length_that_lies_is_refused_before_anything_is_made_for_it(peer: Peer, told: Told) -> None:
    blob = hash_bytes(b"0123")
    token = peer.sessions.grant(Session(None, Direction.PUSH, (blob,), encrypted=False))
    header = format.encode_header(Blob(blob.digest, 1 << 40), Outcome.OK)
    await told.once(
        "bulk.stream_failed", "nonsense", partial(send_raw, peer.bulk, format.encode_prelude(token) + header)
    )


@pytest.mark.parametrize("name", ["../../../etc/passwd@1", "a/../b@1", "/a/b@1", "..", "a/b/c@-1", "a/b/\0@1"])
async def test_a_path_that_would_leave_its_place_is_refused(
    peer: Peer, certificates: Certificates, told: Told, name: str
) -> None:
    async with Client(peer.control, PeerStub, certificates.a) as client:
        drop = partial(client.call, "Drop", pb.SnapshotRequest(id=name), 5)
        await told.once("control.request_refused", "request", partial(fails, InvalidRequest, drop))


async def test_a_manifest_with_a_path_that_would_leave_its_place_is_refused(
    peer: Peer, certificates: Certificates, told: Told
) -> None:
    text = encode(manifest_of({"weights": b"0123"})).replace(b"weights", b"../etcs")
    async with Client(peer.control, PeerStub, certificates.a) as client:
        commit = partial(client.call, "Commit", pb.ManifestText(text=text), 5)
        await told.once("control.request_refused", "request", partial(fails, InvalidRequest, commit))


async def test_an_offer_of_more_than_there_is_makes_nothing(peer: Peer, certificates: Certificates) -> None:
    huge = [encode_blob(Blob(bytes([number] * 16), 1 << 62)) for number in range(100)]
    async with Client(peer.control, PeerStub, certificates.a) as client:
        await fails(FuseTierError, partial(client.call, "OpenPush", pb.PushRequest(blobs=huge), 5))
    assert os.listdir(peer.layout.incoming) == []


# ---- floods ----


async def test_a_flood_of_connections_is_bounded_and_told_once(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("control.connection_refused")
    door = Door(None, most_connections=4)
    before = rejected("too_many")
    async with trio.open_nursery() as nursery:
        listener = await listen_tcp("127.0.0.1:0")
        nursery.start_soon(door.serve, listener)
        port = listener.getsockname()[1]
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(40)]
        for stream in streams[4:]:
            assert await stream.receive_some(1) == b""  # it was closed at once
        assert rejected("too_many") == before + 36
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    listener.close()
    heard = [line for line in expected_logs.heard if "connections are open" in line.text]
    assert len(heard) == 1


async def test_a_flood_of_strangers_keeps_no_other_host_out_of_the_control_port(
    peer: Peer, certificates: Certificates, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_logs.allow("control.connection_refused")
    monkeypatch.setattr("fuse_tier.wire.door.Deadline.CONTROL_CONNECT", 60.0)  # none of them leaves by itself
    before, port = rejected("too_many"), int(peer.control.rpartition(":")[2])
    strangers = [await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2") for _ in range(70)]
    for stranger in strangers[16:]:
        assert await stranger.receive_some(1) == b""  # all places that its host can have are taken
    assert rejected("too_many") == before + 54
    async with aclosing(peer.tier(certificates.a)) as tier:
        await keep(tier, {"weights": b"0123"})
        await check_producible(tier)
    for stranger in strangers:
        await stranger.aclose()
    (line,) = expected_logs.heard
    assert "address='127.0.0.2:" in line.text
    assert "16 others of its host are being let in" in line.text


class TestStrangers:
    def test_places_are_bounded_and_come_back(self) -> None:
        strangers = Strangers(8)
        hosts = [f"10.0.0.{number}" for number in range(5)]
        taken = [host for host in hosts for _ in range(3) if strangers.enter(host) is None]
        assert taken == [host for host in hosts[:4] for _ in range(2)]
        strangers.leave(hosts[0])
        assert strangers.enter(hosts[0]) is None
        for host in taken:
            strangers.leave(host)
        assert [strangers.enter(hosts[4]) for _ in range(2)] == [None, None]

    def test_one_host_alone_keeps_no_other_out(self) -> None:
        strangers = Strangers(8)
        refused = [reason for _ in range(1000) if (reason := strangers.enter("10.0.0.1")) is not None]
        assert len(refused) == 998
        assert strangers.enter("10.0.0.2") is None

    def test_what_has_room_for_one_lets_one_in(self) -> None:
        strangers = Strangers(1)
        assert strangers.enter("10.0.0.1") is None
        assert strangers.enter("10.0.0.2") == "1 others are being let in"


async def test_who_is_let_in_too_slowly_is_sent_away(peer: Peer, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_tier.wire.door.Deadline.CONTROL_CONNECT", 0.05)

    async def hang() -> None:
        host, _, port = peer.control.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"\x16\x03")
            assert await stream.receive_some(1) == b""

    await told.once("control.connection_refused", "slow", hang)


@pytest.mark.parametrize("said", [b"", b"FTB", b"\x16\x03"], ids=["nothing", "a part", "a part of TLS"])
async def test_who_begins_no_stream_is_sent_away(
    peer: Peer, told: Told, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    async def hang() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("fuse_tier.wire.bulk.server.Deadline.BULK_CONNECT", 0.05)
            host, _, port = peer.bulk.rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(said)
                assert await stream.receive_some(1) == b""

    await told.once("bulk.stream_failed", "slow", hang)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_host_that_comes_again_is_counted_each_time_and_told_once_a_minute(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("port.refused")
    clock = Clock()
    rejections = Rejections("port.refused", clock)
    before = rejected("nonsense")
    for port in range(100):
        rejections.note("nonsense", f"10.0.0.1:{port}", "it talks nonsense")
    rejections.note("nonsense", "10.0.0.2:1", "it talks nonsense")
    rejections.note("slow", "10.0.0.1:1", "it is slow")
    clock.now += 61
    rejections.note("nonsense", "10.0.0.1:100", "it talks nonsense")
    assert rejected("nonsense") == before + 102
    assert [line.text.count("times_before=99") for line in expected_logs.heard] == [0, 0, 0, 1]


def test_a_flood_from_everywhere_takes_no_memory_for_ever(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("port.refused")
    rejections = Rejections("port.refused")
    for number in range(3000):
        rejections.note("nonsense", f"10.{number >> 8}.{number & 255}.1:1", "it talks nonsense")
    assert len(rejections) <= 1024


# ---- garbage ----


@pytest.mark.parametrize("said", [b"G", b"FTBS\x01", format.encode_prelude(bytes(32))[:-1]])
async def test_less_than_a_stream_begins_with_is_told_at_the_bulk_port(peer: Peer, told: Told, said: bytes) -> None:
    await told.once("bulk.stream_failed", "nonsense", partial(send_raw, peer.bulk, said))


@pytest.mark.parametrize("port", ["control", "bulk"])
@pytest.mark.parametrize("said", [b"\x16", b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_who_goes_away_while_hands_are_shaken_is_counted_and_told_as_no_warning(
    peer: Peer, expected_logs: ExpectedLogs, port: str, said: bytes
) -> None:
    """It may have been one of ours that was stopped."""

    async def is_told() -> bool:
        return any(line["event"] in ("control.connection_refused", "bulk.stream_failed") for line in lines)

    before = rejected("unfinished")
    with structlog.testing.capture_logs() as lines:
        await send_raw(getattr(peer, port), said)
        await until(is_told)
    (line,) = [line for line in lines if line.get("kind") == "unfinished"]
    assert line["log_level"] == "info"
    assert line["address"].startswith("127.0.0.1:")
    assert rejected("unfinished") == before + 1
    assert expected_logs.heard == []


@pytest.mark.parametrize("port", ["control", "bulk"])
async def test_a_handshake_of_garbage_is_told(peer: Peer, told: Told, port: str) -> None:
    event = {"control": "control.connection_refused", "bulk": "bulk.stream_failed"}[port]
    await told.once(event, "certificate", partial(send_raw, getattr(peer, port), b"\x16\x03\x01\x00\x05hello"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda content: _PREFACE + content),
        st.binary(max_size=100).map(lambda content: b"\x16\x03\x01" + content),
    )
)
def test_garbage_at_the_control_port_harms_nobody(expected_logs: ExpectedLogs, content: bytes) -> None:
    expected_logs.allow("control.connection_refused")

    class Servicer:
        async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802
            return pb.HelloReply(node="b")

    async def is_counted(times: float) -> bool:
        return rejected("nonsense") == times

    async def attempt() -> None:
        async with trio.open_nursery() as nursery:
            port = await nursery.start(
                partial(serve, [(add_PeerServicer_to_server, Servicer())], "127.0.0.1:0", None)
            )
            before = rejected("nonsense")
            await send_raw(f"127.0.0.1:{port}", content)
            if content and not content.startswith(_PREFACE):  # else it is gRPC's own server that hangs up
                await until(partial(is_counted, before + 1))
            async with Client(f"127.0.0.1:{port}", PeerStub, None) as client:
                assert (await client.call("Hello", pb.HelloRequest(), 5)).node == "b"
            nursery.cancel_scope.cancel()

    trio.run(attempt)
