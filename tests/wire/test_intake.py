"""A node with a good certificate that says too much: what is taken in of it at once is bounded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from fuse_tier.errors import FuseTierError, InvalidRequest
from fuse_tier.localcluster.processes import Family, peak_megabytes
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import PeerStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.intake import MOST_BYTES
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.wire.certificates import Certificates
from tests.wire.peers import Peer

_CALLS = 8
_LONG = 32 << 20


async def test_a_request_that_carries_no_manifest_and_is_as_long_is_refused_and_told(
    peer: Peer, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("control.request_refused")
    async with Client(peer.control, PeerStub, certificates.a) as client:
        with pytest.raises(InvalidRequest, match=f"is longer than {MOST_BYTES}"):
            await client.call("Snapshots", pb.SnapshotsRequest(identity="x" * (MOST_BYTES + 1)), 60)
        assert (await client.call("Snapshots", pb.SnapshotsRequest(), 60)).ids == []
    (line,) = expected_logs.heard
    assert "address='127.0.0.1:" in line.text
    assert "kind='request'" in line.text


async def test_a_request_that_is_no_message_is_refused_and_told(
    peer: Peer, certificates: Certificates, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("control.request_refused")

    class Nonsense:
        def __init__(self, channel: grpc.Channel) -> None:
            self.Snapshots: Any = channel.unary_unary("/fuse_tier.v1.Peer/Snapshots")  # bytes as they are

    async with Client(peer.control, Nonsense, certificates.a) as client:
        with pytest.raises(InvalidRequest, match="no message"):
            await client.call("Snapshots", b"\xff\xff\xff", 60)
    (line,) = expected_logs.heard
    assert "kind='request'" in line.text


async def test_what_one_node_has_a_peer_hold_at_once_does_not_grow_with_the_calls_that_it_makes(
    memory_path: Path, tmp_path: Path, certificates: Certificates
) -> None:
    files = certificates.b
    command = ["-m", "tests.e2e.impostor", str(memory_path), "b", "127.0.0.1:0", "127.0.0.1:0"]
    family = Family("a peer", [*command, files.ca, files.cert, files.key], tmp_path / "peer.log")
    family.start()
    try:
        await until(partial(_serves, family), 60)
        address, before = family.output().split()[-1], peak_megabytes(family.pid)
        await _flood(address, certificates, calls=1)
        once = peak_megabytes(family.pid) - before
        await _flood(address, certificates, calls=_CALLS)
        grown = peak_megabytes(family.pid) - before
    finally:
        await family.kill()
    assert once > _LONG >> 20, "it was taken in"
    assert grown < 3 * once, f"{_CALLS} calls: {grown} MB; one: {once} MB"


async def _flood(address: str, certificates: Certificates, calls: int) -> None:
    """Manifests that are none, all at once, over a connection each."""
    request = pb.ManifestText(text=bytes(_LONG))

    async def commit() -> None:
        async with Client(address, PeerStub, certificates.a) as client:
            with pytest.raises(FuseTierError):
                await client.call("Commit", request, 120)

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(commit)


async def _serves(family: Family) -> bool:
    return "serving as" in family.output()
