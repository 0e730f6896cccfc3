"""Nodes of two clusters that can reach each other: each call says which it is of, not the first one alone."""

from __future__ import annotations

import pytest
import trio

from fuse_tier.errors import TierRefused
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import PeerStub, add_PeerServicer_to_server
from fuse_tier.wire.grpc import Caller, Client, serve
from tests.harness.logs import ExpectedLogs


class Keeper:
    """Has been asked to drop these."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    async def Drop(self, request: pb.SnapshotRequest, caller: Caller) -> pb.Empty:  # noqa: N802 - its wire name
        self.dropped.append(request.id)
        return pb.Empty()


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
async def address(nursery: trio.Nursery, keeper: Keeper) -> str:
    port = await nursery.start(
        lambda task_status: serve(
            [(add_PeerServicer_to_server, keeper)], "127.0.0.1:0", None, cluster="ours", task_status=task_status
        )
    )
    return f"127.0.0.1:{port}"


async def test_a_call_of_another_cluster_changes_nothing(
    address: str, keeper: Keeper, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.refused")
    async with Client(address, PeerStub, None, cluster="theirs") as client:
        with pytest.raises(TierRefused, match="belongs to cluster 'ours', and the caller to 'theirs'"):
            await client.call("Drop", pb.SnapshotRequest(id="x"), 5)
    assert keeper.dropped == []


@pytest.mark.parametrize("cluster", ["ours", ""])  # a version before says nothing
async def test_a_call_of_our_own_is_taken(address: str, keeper: Keeper, cluster: str) -> None:
    async with Client(address, PeerStub, None, cluster=cluster) as client:
        await client.call("Drop", pb.SnapshotRequest(id="x"), 5)
    assert keeper.dropped == ["x"]
