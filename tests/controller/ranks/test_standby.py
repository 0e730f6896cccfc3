"""Two ranks servers beside a real API server: one leads, and the other takes over from it, whatever became of it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from kubernetes.client import ApiClient

from controller.election import TERM_ANNOTATION
from controller.local.kube import ApiServer
from controller.ranks import sign
from controller.ranks.server import LEASE, Serving, serve_ranks
from controller.writing import Writer
from csi import ranks_pb2 as pb
from csi.ranks_pb2_grpc import RanksServiceStub
from csi.services import DRIVER_NAME
from fuse_tier.config import CoordinatorConfig
from fuse_tier.epochs import FARTHEST_AHEAD, from_the_time, is_in_reason
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.wire import control_pb2 as core
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub
from fuse_tier.wire.grpc import Client
from tests.controller.ranks.test_server import ask, assigned, make_job, make_node, make_pod
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = pytest.mark.kube

_calls = itertools.count(1)
NAMESPACE = "gke-managed-checkpointing"
LEASE_PATH = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{LEASE}"


@dataclass
class Server:
    """A ranks server as a process, in a pod of its own."""

    pod: str
    address: str
    process: subprocess.Popen[bytes]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        return await trio.to_thread.run_sync(self.process.wait)


@dataclass
class Site:
    """The API server, with what it has."""

    api: ApiServer
    writer: Writer
    directory: Path

    async def start(self, pod: str) -> Server:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        (self.directory / f"{pod}.yaml").write_text(yaml.safe_dump({"listen": address, "lease": 1.0}))
        (self.directory / "kubeconfig").write_text(yaml.safe_dump(self.api.kubeconfig))
        command = [
            *(sys.executable, "-m", "controller.ranks.cli", "--config", str(self.directory / f"{pod}.yaml")),
            *("--leader-election", f"--pod-name={pod}", f"--namespace={NAMESPACE}"),
            f"--kubeconfig-path={self.directory / 'kubeconfig'}",
        ]
        with (self.directory / f"{pod}.log").open("ab") as log:
            return Server(pod, address, subprocess.Popen(command, stdout=log, stderr=log))  # noqa: ASYNC220

    async def leader(self) -> str:
        """The pod that the service has nodes go to; empty: none, or several."""
        found = (await self.writer.read(f"/api/v1/namespaces/{NAMESPACE}/pods", sign.LABEL))["items"]
        return str(found[0]["metadata"]["name"]) if len(found) == 1 else ""

    async def until_led_by(self, *pods: str) -> str:
        async def so() -> bool:
            return await self.leader() in pods

        await until(so)
        return await self.leader()

    async def term(self) -> int:
        return int((await self.writer.read(LEASE_PATH))["metadata"]["annotations"][TERM_ANNOTATION])


async def with_two_pods(server: ApiServer, api: ApiClient, directory: Path) -> Site:
    """In which nothing runs."""
    await server.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for pod in ("ranks-1", "ranks-2"):
        spec = {"containers": [{"name": "ranks", "image": "i"}]}
        await server.create(f"/api/v1/namespaces/{NAMESPACE}/pods", {"metadata": {"name": pod}, "spec": spec})
    return Site(server, Writer(api, 1000), directory)


@asynccontextmanager
async def two_servers(api_server: ApiServer, directory: Path) -> AsyncIterator[tuple[Site, Server, Server]]:
    """The first of them leads."""
    with api_server.client as api:
        site = await with_two_pods(api_server, api, directory)
        servers: list[Server] = []
        try:
            servers.append(await site.start("ranks-1"))
            await site.until_led_by("ranks-1")
            servers.append(await site.start("ranks-2"))
            yield site, servers[0], servers[1]
        finally:
            for server in servers:
                server.process.kill()
                server.process.wait()


async def report(address: str, term: int = 0) -> core.ReportReply:
    where = core.Addresses(control="10.0.0.0:7460", bulk="10.0.0.0:7461")
    request = core.ReportRequest(
        cluster="default", node="node-0", instance="1", sequence=next(_calls), addresses=where, term=term
    )
    async with Client(address, CoordinatorStub, None) as coordinator:
        reply: core.ReportReply = await coordinator.call("Report", request, 5)
    return reply


async def ranks_at(address: str, pods: dict[str, str], **kept: Any) -> list[int]:
    async with Client(address, RanksServiceStub, None) as client:
        return await assigned(client, pods, **kept)


async def test_who_waits_takes_over_from_one_that_was_killed_and_no_rank_changes(
    api_server: ApiServer, tmp_path: Path
) -> None:
    await api_server.create("/api/v1/namespaces", {"metadata": {"name": "ml"}})
    async with two_servers(api_server, tmp_path) as (site, first, second):
        await make_job(api_server, 0, 2)
        for number in range(2):
            await make_node(api_server, f"node-{number}", "pool")
        # On the nodes that the indices do not say: nobody would give them these ranks anew.
        pods = {await make_pod(api_server, 0, worker, f"node-{worker}"): f"node-{worker}" for worker in range(2)}
        kept = {"jobset": "ml/llama", "jobset_shape": "1x2", "state": pb.ASSIGNED}
        async with Client(first.address, RanksServiceStub, None) as client:
            for rank, (uid, on) in zip((1, 0), pods.items(), strict=True):

                async def has_it(uid: str = uid, on: str = on, rank: int = rank) -> bool:
                    try:
                        return (await ask(client, on, uid, rank=rank, **kept)).rank == rank
                    except TierUnavailable:  # a watch takes a moment
                        return False

                await until(has_it)
        before = await site.term()
        first.send(signal.SIGKILL)
        assert await site.until_led_by("ranks-2") == "ranks-2"
        assert await site.term() > before
        async with Client(second.address, RanksServiceStub, None) as client:
            for rank, (uid, on) in zip((1, 0), pods.items(), strict=True):
                assert (await ask(client, on, uid, rank=rank, **kept)).rank == rank


async def test_one_that_ends_in_order_hands_over_at_once_and_one_that_comes_back_waits(
    api_server: ApiServer, tmp_path: Path
) -> None:
    async with two_servers(api_server, tmp_path) as (site, first, second):
        first.send(signal.SIGTERM)
        assert await first.ended() == 0
        await site.until_led_by("ranks-2")
        await report(second.address)
        again = await site.start("ranks-1")
        try:
            with pytest.raises(FuseTierError):
                await report(again.address)
            assert await site.leader() == "ranks-2"
        finally:
            again.process.kill()
            again.process.wait()


async def test_one_that_stood_still_answers_nobody_when_it_goes_on_and_ends(
    api_server: ApiServer, tmp_path: Path
) -> None:
    async with two_servers(api_server, tmp_path) as (site, first, second):
        old = (await report(first.address)).term
        first.send(signal.SIGSTOP)
        await site.until_led_by("ranks-2")
        new = (await report(second.address)).term
        assert new > old
        first.send(signal.SIGCONT)
        with pytest.raises(TierUnavailable):
            await report(first.address)
        assert await first.ended() == 1, "it is started again, and waits for its turn"
        assert await site.leader() == "ranks-2"


async def test_one_that_believes_to_lead_ends_when_a_node_has_heard_of_a_newer_one(
    api_server: ApiServer, tmp_path: Path
) -> None:
    async with two_servers(api_server, tmp_path) as (site, first, _second):
        term = await site.term()

        async def is_refused() -> bool:
            # In its first lease it rises above what it hears; then it has decided something.
            try:
                settled = (await report(first.address, term)).settled
                if settled:
                    await report(first.address, term + 5)
            except TierUnavailable:
                return True
            return False

        await until(is_refused)
        assert await first.ended() == 1
        await site.until_led_by("ranks-2")


async def test_a_term_out_of_all_reason_that_the_lease_remembers_is_not_gone_on_from(
    api_server: ApiServer, tmp_path: Path
) -> None:
    async with two_servers(api_server, tmp_path) as (site, first, _second):
        first.send(signal.SIGKILL)
        await first.ended()
        lease = await site.writer.read(LEASE_PATH)
        lease["metadata"]["annotations"][TERM_ANNOTATION] = str(from_the_time() + 2 * FARTHEST_AHEAD)
        lease["spec"]["holderIdentity"] = ""  # given back: nobody waits for it to run out
        await site.writer.replace(LEASE_PATH, lease)
        await site.until_led_by("ranks-2")
        assert is_in_reason(await site.term())


async def test_a_sign_that_somebody_takes_away_is_put_up_again(
    api_server: ApiServer, tmp_path: Path, expected_logs: ExpectedLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign, "_LOOK_EVERY_SECONDS", 0.2)
    expected_logs.allow("sign.put_up_again")
    config = CoordinatorConfig.model_validate({"listen": f"127.0.0.1:{free_ports(1)[0]}"})
    with api_server.client as api, api_server.client as admin:
        site = await with_two_pods(api_server, admin, tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_ranks, api, Serving(DRIVER_NAME, config, NAMESPACE, "ranks-1"))
            assert await site.leader() == "ranks-1"
            for pod, value in (("ranks-2", sign.LEADS), ("ranks-1", None)):
                path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}"
                changed = await site.writer.merge(path, {"metadata": {"labels": {sign.LABEL: value}}})
                assert changed["metadata"].get("labels", {}).get(sign.LABEL) == value
            await site.until_led_by("ranks-1")
            nursery.cancel_scope.cancel()
    assert {line.event for line in expected_logs.heard} == {"sign.put_up_again"}
