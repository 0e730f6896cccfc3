from __future__ import annotations

import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import errors
from fuse_tier.errors import (
    ConfigError,
    DeadlineExceeded,
    FuseTierError,
    MountError,
    SnapshotConflict,
    TierError,
    TierRefused,
    TierUnavailable,
)
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import (
    PeerStub,
    add_PeerServicer_to_server,
)
from fuse_tier.wire.grpc import Caller, Client, serve
from fuse_tier.wire.tls import TlsFiles
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.wire.certificates import make_certificates


class BucketOnFire(TierError):
    """A class that only its own module knows."""


class PeerServicer:
    """Raises, hangs and answers as it is told."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.begun = trio.Event()
        self.cancelled = trio.Event()

    async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802
        return pb.HelloReply(node=str(caller.node), cluster=caller.address)

    async def Drop(self, request: pb.SnapshotRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        assert self.failure is not None
        raise self.failure

    async def Snapshots(self, request: pb.SnapshotsRequest, caller: Caller) -> pb.SnapshotsReply:  # noqa: N802
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()

    async def Commit(self, request: pb.ManifestText, caller: Caller) -> pb.Empty:  # noqa: N802
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.Drop, pb.SnapshotRequest(), caller)
        return pb.Empty()

    async def Manifest(self, request: pb.SnapshotRequest, caller: Caller) -> pb.ManifestText:  # noqa: N802
        return pb.ManifestText(text=bytes(int(request.id)))


@pytest.fixture
def peer() -> PeerServicer:
    return PeerServicer()


@pytest.fixture
async def address(peer: PeerServicer) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve, [(add_PeerServicer_to_server, peer)], "127.0.0.1:0", None))
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with Client(address, PeerStub, None) as client:
        yield client


def handler_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("grpc-handler")]


ALL_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FuseTierError) and kind is not SnapshotConflict
]


@pytest.mark.parametrize("kind", ALL_ERRORS)
async def test_what_a_handler_raises_its_caller_raises(
    client: Client, peer: PeerServicer, expected_logs: ExpectedLogs, kind: type[FuseTierError]
) -> None:
    expected_logs.allow("control.request_refused")
    peer.failure = kind("größer als erwartet: 5 %\nin zwei Zeilen")
    with pytest.raises(FuseTierError) as caught:
        await client.call("Drop", pb.SnapshotRequest(), 5)
    assert type(caught.value) is kind
    assert str(caught.value) == "größer als erwartet: 5 %\nin zwei Zeilen"


async def test_a_conflict_tells_the_highest_number(client: Client, peer: PeerServicer) -> None:
    peer.failure = SnapshotConflict("it is there", 2**62)
    with pytest.raises(SnapshotConflict) as caught:
        await client.call("Drop", pb.SnapshotRequest(), 5)
    assert caught.value.highest == 2**62


async def test_an_error_that_only_the_server_knows_arrives_as_its_nearest_base(
    client: Client, peer: PeerServicer
) -> None:
    peer.failure = BucketOnFire("call the fire brigade")
    with pytest.raises(TierError, match="call the fire brigade") as caught:
        await client.call("Drop", pb.SnapshotRequest(), 5)
    assert type(caught.value) is TierError


async def test_an_error_from_within_a_nursery_arrives_as_itself(client: Client, peer: PeerServicer) -> None:
    peer.failure = MountError("the mountpoint is a file")
    with pytest.raises(MountError):
        await client.call("Commit", pb.ManifestText(), 5)


async def test_a_message_of_any_length_arrives_at_least_in_part(client: Client, peer: PeerServicer) -> None:
    peer.failure = MountError("ü" * 100_000)
    with pytest.raises(MountError, match="üüü…"):
        await client.call("Drop", pb.SnapshotRequest(), 5)


async def test_a_defect_of_a_handler_is_logged_there_and_not_told(
    client: Client, peer: PeerServicer, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("grpc.handler_failed")
    peer.failure = RuntimeError("the password is swordfish")
    with pytest.raises(TierUnavailable, match="its log says why") as caught:
        await client.call("Drop", pb.SnapshotRequest(), 5)
    assert "swordfish" not in str(caught.value)


async def test_a_call_that_is_not_served_says_that_versions_differ(client: Client) -> None:
    with pytest.raises(TierRefused, match="Verify: it runs another version"):
        await client.call("Verify", pb.VerifyRequest(), 5)


async def test_a_deadline_names_the_call_and_ends_the_handler(
    client: Client, peer: PeerServicer, address: str
) -> None:
    with pytest.raises(DeadlineExceeded, match=rf"Snapshots at {address} was not answered within 0\.2 s"):
        await client.call("Snapshots", pb.SnapshotsRequest(), 0.2)
    await peer.cancelled.wait()


async def test_cancelling_a_call_ends_the_handler(client: Client, peer: PeerServicer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.call, "Snapshots", pb.SnapshotsRequest(), 60)
        await peer.begun.wait()
        nursery.cancel_scope.cancel()
    await peer.cancelled.wait()


async def test_closing_a_client_ends_its_calls(client: Client, peer: PeerServicer) -> None:
    async def call() -> None:
        with pytest.raises(TierUnavailable, match="was closed here"):
            await client.call("Snapshots", pb.SnapshotsRequest(), 60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await peer.begun.wait()
        await client.aclose()
    await peer.cancelled.wait()
    with pytest.raises(TierUnavailable, match="was closed here"):
        await client.call("Hello", pb.HelloRequest(), 5)


async def test_a_manifest_of_a_large_tree_fits(client: Client) -> None:
    reply = await client.call("Manifest", pb.SnapshotRequest(id=str(32 << 20)), 30)
    assert len(reply.text) == 32 << 20


async def test_ending_a_server_ends_its_handlers_and_threads_and_says_so_to_callers(peer: PeerServicer) -> None:
    before = handler_threads()

    async def call(address: str) -> None:
        async with Client(address, PeerStub, None) as client:
            with pytest.raises(TierUnavailable):
                await client.call("Snapshots", pb.SnapshotsRequest(), 60)

    async with trio.open_nursery() as calling:
        async with trio.open_nursery() as serving:
            port = await serving.start(partial(serve, [(add_PeerServicer_to_server, peer)], "127.0.0.1:0", None))
            calling.start_soon(call, f"127.0.0.1:{port}")
            await peer.begun.wait()
            serving.cancel_scope.cancel()
        assert peer.cancelled.is_set()
        assert handler_threads() == before


async def test_a_client_finds_a_server_that_was_started_again(peer: PeerServicer, unused_port: int) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with Client(address, PeerStub, None) as client:
        for _ in range(2):
            # The connection to a server that has just ended may say once more that it ends.
            await until(partial(_is_refused, client, address))
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(serve, [(add_PeerServicer_to_server, peer)], address, None))
                await until(partial(_answers, client))
                nursery.cancel_scope.cancel()


async def _is_refused(client: Client, address: str) -> bool:
    with pytest.raises(TierUnavailable, match=f"{address} does not answer: ") as raised:
        await client.call("Hello", pb.HelloRequest(), 5)
    return "connection refused" in str(raised.value)


async def _answers(client: Client) -> bool:
    """Not before the backoff after a failed connection is over."""
    try:
        await client.call("Hello", pb.HelloRequest(), 5)
    except TierUnavailable:
        return False
    return True


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


async def test_a_port_in_use_is_a_config_error_that_names_it(address: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {address}: the port is already in use"):
        await serve([], address, None)


@pytest.mark.parametrize("address", ["203.0.113.1:80", "no-such-host.invalid:80"])
async def test_an_address_of_others_is_a_config_error_that_names_it(address: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {address}: "):
        await serve([], address, None)


async def outcome_of(call: Callable[[], Awaitable[object]]) -> object:
    """What a call returns, or the TierUnavailable that it raises: errors do not leave a nursery as they are."""
    try:
        return await call()
    except TierUnavailable as error:
        return error


class TestUnderTls:
    async def call(self, server: TlsFiles | None, client: TlsFiles | None) -> pb.HelloReply:
        async with trio.open_nursery() as nursery:
            services = [(add_PeerServicer_to_server, PeerServicer())]
            port = await nursery.start(partial(serve, services, "127.0.0.1:0", server))
            async with Client(f"127.0.0.1:{port}", PeerStub, client) as calling:
                outcome = await outcome_of(partial(calling.call, "Hello", pb.HelloRequest(), 5))
            nursery.cancel_scope.cancel()
        if isinstance(outcome, TierUnavailable):
            raise outcome
        assert isinstance(outcome, pb.HelloReply)
        return outcome

    async def test_a_caller_is_known_by_its_certificate(self, tmp_path: Path) -> None:
        certificates = make_certificates(tmp_path)
        reply = await self.call(certificates.b, certificates.a)
        assert reply.node == "a"
        assert reply.cluster.startswith("127.0.0.1:")
        assert (await self.call(None, None)).node == "None"

    @pytest.mark.parametrize(
        ("client", "words"),
        [
            (lambda known: known.stranger, "not of this cluster's authority"),
            (lambda known: known.intruder, "does not take our certificate"),
            (lambda known: known.expired, "does not take our certificate"),
            (lambda known: None, "does not take our certificate"),
        ],
        ids=["other authority", "other certificate", "expired", "none"],
    )
    async def test_a_client_with_a_bad_certificate_gets_nowhere(
        self,
        tmp_path: Path,
        expected_logs: ExpectedLogs,
        client: Callable[..., TlsFiles | None],
        words: str,
    ) -> None:
        expected_logs.allow("control.connection_refused")
        certificates = make_certificates(tmp_path)
        with pytest.raises(TierUnavailable, match=words):
            await self.call(certificates.b, client(certificates))

    async def test_a_server_with_a_bad_certificate_is_not_believed(
        self, tmp_path: Path, expected_logs: ExpectedLogs
    ) -> None:
        expected_logs.allow("control.connection_refused")
        certificates = make_certificates(tmp_path)
        for server in (certificates.expired, certificates.stranger):
            with pytest.raises(TierUnavailable, match="TLS refused: its certificate"):
                await self.call(server, certificates.a)
        with pytest.raises(TierUnavailable, match=r"TLS handshake failed|does not take our certificate"):
            await self.call(None, certificates.a)


async def test_a_server_that_ends_warns_nobody_of_the_calls_that_end_with_it(
    client: Client, expected_logs: ExpectedLogs, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC says so only of those that are late: it cannot be brought about at will."""
    expected_logs.allow("the handler is late")
    await client.call("Hello", pb.HelloRequest(), 5)  # there is a server
    core = logging.getLogger("grpc._cython.cygrpc")
    core.warning("Aborting method [%s] due to server stop.", "/fuse_tier.v1.Coordinator/Reports")
    core.warning("the handler is late")
    assert caplog.messages == ["the handler is late"]
