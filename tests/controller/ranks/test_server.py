"""The ranks server beside a real API server: what pods, jobs and nodes are made there, it knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from controller.local.kube import ApiServer
from controller.ranks.server import Serving, serve_ranks
from controller.writing import Writer
from csi import ranks_pb2 as pb
from csi.ranks_pb2_grpc import RanksServiceStub
from csi.services import DRIVER_NAME
from fuse_tier.config import CoordinatorConfig
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import Domain
from fuse_tier.wire import control_pb2 as core
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import domain_from_wire
from tests.controller.ranks.objects import jobset_pod, node
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = pytest.mark.kube


@asynccontextmanager
async def ranks_server(api_server: ApiServer) -> AsyncIterator[Client]:
    config = CoordinatorConfig.model_validate({"listen": f"127.0.0.1:{free_ports(1)[0]}"})
    with api_server.client as api:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_ranks, api, Serving(DRIVER_NAME, config))
            async with Client(str(config.listen), RanksServiceStub, None) as client:
                yield client
            nursery.cancel_scope.cancel()


async def domain_told_to(client: Client, name: str) -> Domain:
    """What a node hears of itself when it reports to the coordinator, which is the same server."""
    where = core.Addresses(control="10.0.0.0:7460", bulk="10.0.0.0:7461")
    request = core.ReportRequest(cluster="default", node=name, instance="1", sequence=1, addresses=where)
    async with Client(client._address, CoordinatorStub, None) as coordinator:
        reply: core.ReportReply = await coordinator.call("Report", request, 5)
    return domain_from_wire(reply.domain)


async def make_job(server: ApiServer, number: int, workers: int) -> None:
    template = {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    spec = {"completionMode": "Indexed", "completions": workers, "parallelism": workers, "template": template}
    await server.create(
        "/apis/batch/v1/namespaces/ml/jobs", {"metadata": {"name": f"llama-workers-{number}"}, "spec": spec}
    )


async def make_node(server: ApiServer, name: str, pool: str) -> None:
    made = await server.create("/api/v1/nodes", {"metadata": {"name": name, **node("", pool)["metadata"]}})
    await server.replace_status(f"/api/v1/nodes/{name}", made | {"status": node(f"10.0.0.{name[-1]}")["status"]})


async def make_pod(server: ApiServer, number: int, worker: int, on: str, attempt: int = 0) -> str:
    """As the job controller and the scheduler make it; gives its uid."""
    found: dict[str, Any] = jobset_pod("llama", 1, number, worker, attempt=attempt)
    metadata = {key: found["metadata"][key] for key in ("name", "labels", "ownerReferences")}
    for owner in metadata["ownerReferences"]:
        owner["apiVersion"] = "batch/v1"
    spec = {**found["spec"], "nodeName": on, "containers": [{"name": "c", "image": "i"}]}
    made = await server.create("/api/v1/namespaces/ml/pods", {"metadata": metadata, "spec": spec})
    uid: str = made["metadata"]["uid"]
    return uid


async def ask(client: Client, on: str, uid: str, **more: Any) -> pb.UpdateResponse:
    answer: pb.UpdateResponse = await client.call("Update", pb.UpdateRequest(node=on, pod_uid=uid, **more), 5)
    return answer


async def assigned(client: Client, pods: dict[str, str], **more: Any) -> list[int]:
    """The ranks of all of these pods, as soon as they have them."""
    ranks: dict[str, int] = {}

    async def all_have_one() -> bool:
        for uid, on in pods.items():
            try:
                answer = await ask(client, on, uid, **more)
            except TierUnavailable:  # a watch takes a moment
                return False
            if answer.new_state == pb.ASSIGNED:
                ranks[uid] = answer.rank
        return ranks.keys() == pods.keys()

    await until(all_have_one)
    return [ranks[uid] for uid in pods]


async def test_a_jobs_pods_get_their_ranks_and_a_replacement_the_one_that_was_lost(api_server: ApiServer) -> None:
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
    await make_node(api_server, "node-0", "pool")
    async with ranks_server(api_server) as client:
        await make_node(api_server, "node-1", "pool")
        assert await domain_told_to(client, "node-0") == Domain("zone-of-pool", "pool", "host-of-pool")
        await make_job(api_server, 0, 2)
        first = await make_pod(api_server, 0, 0, "node-0")
        second = await make_pod(api_server, 0, 1, "node-1")
        assert await assigned(client, {first: "node-0", second: "node-1"}) == [0, 1]
        answer = await ask(client, "node-1", second)
        assert (answer.jobset, answer.jobset_shape, answer.controller_ip) == ("ml/llama", "1x2", "10.0.0.0")

        await api_server.delete("/api/v1/namespaces/ml/pods/llama-workers-0-0-0")
        await make_node(api_server, "node-2", "pool")
        replacement = await make_pod(api_server, 0, 0, "node-2")
        assert await assigned(client, {replacement: "node-2", second: "node-1"}) == [0, 1]
        assert (await ask(client, "node-1", second)).controller_ip == "10.0.0.2"


async def test_a_server_that_is_started_again_and_one_that_lost_its_api_server_know_what_they_knew(
    api_server: ApiServer, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("api.unavailable")
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
    await make_job(api_server, 0, 2)
    for number in range(3):
        await make_node(api_server, f"node-{number}", "pool")
    pods = {await make_pod(api_server, 0, worker, f"node-{worker}"): f"node-{worker}" for worker in range(2)}
    kept = {"jobset": "ml/llama", "jobset_shape": "1x2"}
    uids = list(pods)
    async with ranks_server(api_server) as client:
        # What nodes keep of a server before this one.
        for uid, rank in zip(uids, (1, 0), strict=True):
            answer = await ask(client, pods[uid], uid, state=pb.ASSIGNED, rank=rank, **kept)
            assert (answer.new_state, answer.rank) == (pb.ASSIGNED, rank)
        await api_server.stop()
        assert (await ask(client, "node-0", uids[0])).rank == 1
        await api_server.start()
        await api_server.delete("/api/v1/namespaces/ml/pods/llama-workers-0-0-0")
        replacement = await make_pod(api_server, 0, 0, "node-2")
        assert await assigned(client, {replacement: "node-2"}) == [1]
        with pytest.raises(FuseTierError):
            await ask(client, "node-0", uids[0])


async def test_a_restart_in_place_is_told_by_an_event_on_the_jobset(
    api_server: ApiServer, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"ranks\.restarted_in_place")
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
    await make_job(api_server, 0, 2)
    async with ranks_server(api_server) as client:
        uids = [await make_pod(api_server, 0, worker, f"node-{worker}") for worker in range(2)]
        assert await assigned(client, {uids[0]: "node-0", uids[1]: "node-1"}) == [0, 1]
        with api_server.client as api:
            writer = Writer(api, 100)
            pod = "/api/v1/namespaces/ml/pods/llama-workers-0-1-0"
            container = {"name": "c", "image": "i", "imageID": "", "ready": True, "restartCount": 1}
            await writer.merge(f"{pod}/status", {"status": {"containerStatuses": [container]}})

            async def is_told() -> bool:
                found = (await writer.read("/api/v1/namespaces/ml/events"))["items"]
                told = {
                    (one["reason"], one["involvedObject"]["kind"], one["involvedObject"]["name"]) for one in found
                }
                return ("RestartedInPlace", "JobSet", "llama") in told

            await until(is_told)
