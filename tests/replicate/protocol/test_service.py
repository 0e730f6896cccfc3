"""``replication.ReplicationService``, as tools call it: real gRPC on loopback, through a real coordinator."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from fuse_tier.errors import InvalidRequest, TierRefused
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.wire import replication_pb2 as pb
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.replication_pb2_grpc import ReplicationServiceStub
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.root]


async def test_a_coordinator_that_is_registered_on_one_node_is_found_on_another_as_soon_as_it_is(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("control.request_refused", "membership.coordinator_unavailable")
    cluster = await make_cluster("a", "b", bucket=False, start=False)
    for node in cluster:
        node.config["replicationApi"] = f"127.0.0.1:{free_ports(1)[0]}"
    await cluster.start()
    a, b = (
        Client(str(node.config["replicationApi"]), ReplicationServiceStub, None) for node in cluster
    )  # as tools do: no certificate
    async with a, b:
        found: list[str] = []

        async def find() -> None:
            reply = await b.call("GetCoordinator", pb.GetCoordinatorRequest(job_name="llama"), 60)
            found.append(reply.ip)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find)
            await a.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="llama", ip="10.0.0.7"), 5)
        assert found == ["10.0.0.7"]
        reply = await a.call("GetCoordinator", pb.GetCoordinatorRequest(job_name="llama"), 5)
        assert reply == pb.GetCoordinatorResponse(job_name="llama", ip="10.0.0.7")

        # Its node crashed, and it began anew on another one: on the first, too, the newer is found.
        await b.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="llama", ip="10.0.0.8"), 5)
        await until(partial(finds, a, "10.0.0.8"))
        await a.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="llama", ip="10.0.0.9"), 5)
        await until(partial(finds, b, "10.0.0.9"))
        await a.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="llama", ip="10.0.0.10"), 5)
        assert await finds(a, "10.0.0.10"), "at once, though the node has not reported it"
        await a.call("UnregisterCoordinator", pb.UnregisterCoordinatorRequest(job_name="llama"), 5)

        # Nothing is mounted for anybody, and none is told that it was.
        with pytest.raises(TierRefused, match="is copied to peers and to the bucket without a mount of theirs"):
            await a.call("SetReplicationPeer", pb.SetReplicationPeerRequest(local_mountpoint="/x", target_ip="h"), 5)
        with pytest.raises(TierRefused, match="the bucket is not mounted at '/x'"):
            await a.call("MountGCSBucket", pb.MountGCSBucketRequest(local_mountpoint="/x"), 5)
        await a.call("UnmountPeer", pb.UnmountPeerRequest(local_mountpoint="/x"), 5)
        await a.call("UnmountAllPeers", pb.UnmountAllPeersRequest(), 5)
        for request in (
            pb.RegisterCoordinatorRequest(job_name="../x", ip="10.0.0.7"),
            pb.RegisterCoordinatorRequest(job_name="llama", ip="seven"),
        ):
            with pytest.raises(InvalidRequest, match="is no"):
                await a.call("RegisterCoordinator", request, 5)

        # A coordinator that hears of them in another order knows the last one all the same.
        await b.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="bert", ip="10.0.0.1"), 5)
        await a.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="bert", ip="10.0.0.2"), 5)
        assert cluster.coordinator is not None
        await cluster.coordinator.kill()
        await cluster.coordinator.start()
        await until(partial(finds, b, "10.0.0.2", job="bert"))
        await a.call("UnregisterCoordinator", pb.UnregisterCoordinatorRequest(job_name="bert"), 5)
        await until(partial(finds, a, "10.0.0.1", job="bert"))

        # While nobody tells of others, a node says what was registered there.
        await a.call("RegisterCoordinator", pb.RegisterCoordinatorRequest(job_name="llama", ip="10.0.0.11"), 5)
        await cluster.coordinator.stop()
        assert await finds(a, "10.0.0.11")


async def finds(node: Client, address: str, job: str = "llama") -> bool:
    """Whether the job's coordinator is there, as this node says."""
    reply = await node.call("GetCoordinator", pb.GetCoordinatorRequest(job_name=job), 5)
    return bool(reply.ip == address)


def test_messages_have_the_numbers_that_tools_were_built_with() -> None:
    assert pb.RegisterCoordinatorRequest(job_name="j", ip="i").SerializeToString() == b"\x0a\x01j\x12\x01i"
    assert pb.GetCoordinatorResponse(ip="i").SerializeToString() == b"\x12\x01i"
    assert (
        pb.SetReplicationPeerRequest(local_mountpoint="m", target_ip="t").SerializeToString() == b"\x0a\x01m\x12\x01t"
    )
    service = pb.DESCRIPTOR.services_by_name["ReplicationService"]
    assert service.full_name == "replication.ReplicationService"
    assert [one.name for one in service.methods] == [
        "RegisterCoordinator", "GetCoordinator", "UnregisterCoordinator", "SetReplicationPeer", "MountGCSBucket",
        "UnmountPeer", "UnmountAllPeers",
    ]  # fmt: skip
