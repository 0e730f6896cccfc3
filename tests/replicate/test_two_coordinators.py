"""A node between two coordinators, each of which believes to be the one: it listens to the newer only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.fencing import Fence, Superseded
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.errors import TierUnavailable
from fuse_tier.localcluster.ports import free_ports
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until as until_so
from tests.replicate.members import GEMMA, LEASE, LLAMA, Cluster, Node


class Deaf(Fence):
    """Of a coordinator that is told of no other: all its nodes are those that have not heard."""

    def hear(self, term: int, *, is_settled: bool) -> None:
        """It does not."""


@dataclass
class Coordinator:
    """A real one, in this process."""

    address: str
    ended: trio.Event = field(default_factory=trio.Event)
    superseded: bool = False


@dataclass
class Service:
    """One address for several, as Kubernetes has it: connections go to ``target``, until ``turn_to`` cuts them."""

    target: str = ""
    address: str = ""
    scopes: list[trio.CancelScope] = field(default_factory=list)

    def turn_to(self, coordinator: Coordinator) -> None:
        self.target = coordinator.address
        for scope in self.scopes:
            scope.cancel()
        self.scopes.clear()

    async def serve(self, near: trio.SocketStream) -> None:
        host, _, port = self.target.rpartition(":")
        scope = trio.CancelScope()
        self.scopes.append(scope)
        with scope:
            try:
                async with near, await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far)
                    await self._pump(far, near)
                    nursery.cancel_scope.cancel()
            except OSError:
                return  # nobody is there

    @staticmethod
    async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for chunk in source:
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # one side has ended


@dataclass
class Site:
    cluster: Cluster
    service: Service
    nursery: trio.Nursery

    async def coordinator(self, fence: Fence) -> Coordinator:
        made = Coordinator(f"127.0.0.1:{free_ports(1)[0]}")
        config = CoordinatorConfig.model_validate({"listen": made.address, "lease": LEASE})

        async def run(task_status: trio.TaskStatus[None]) -> None:
            try:
                await serve_coordinator(config, fence=fence, task_status=task_status)
            except* Superseded:
                made.superseded = True
            made.ended.set()

        await self.nursery.start(run)
        return made

    async def node(self, name: str, **more: Any) -> Node:
        return await self.cluster.start(name, coordinator=self.service.address, **more)


@pytest.fixture
async def site(cluster: Cluster, expected_logs: ExpectedLogs) -> AsyncIterator[Site]:
    expected_logs.allow("membership.coordinator_unavailable", "coordinator.node_gone", "coordinator.report_refused")
    async with _running_service() as service, trio.open_nursery() as nursery:
        yield Site(cluster, service, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _running_service() -> AsyncIterator[Service]:
    service = Service()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, service.serve, 0, host="127.0.0.1"))
        service.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        yield service
        nursery.cancel_scope.cancel()


async def heard_of(node: Node, other: str) -> None:
    """Returns when the node has heard from whoever is its coordinator that this one is alive."""

    async def so() -> bool:
        node.membership.report_soon()
        return any(member.node == other and member.alive for member in node.membership.members())

    await until_so(so)


async def test_one_that_was_replaced_grants_nothing_and_ends(site: Site) -> None:
    old = await site.coordinator(Fence(5))
    site.service.turn_to(old)
    a = await site.node("a")
    await a.membership.claim(LLAMA)
    new = await site.coordinator(Fence(6))
    site.service.turn_to(new)
    await site.node("b")
    await heard_of(a, "b")
    site.service.turn_to(old)
    with pytest.raises(TierUnavailable):
        await a.membership.claim(GEMMA)
    with trio.fail_after(20):
        await old.ended.wait()
    assert old.superseded
    assert not new.ended.is_set()
    site.service.turn_to(new)
    await a.membership.claim(GEMMA)
    assert a.membership.mounted() == {LLAMA, GEMMA}


async def test_a_node_does_not_listen_to_one_that_does_not_know_that_it_was_replaced(site: Site) -> None:
    old, new = await site.coordinator(Deaf(5)), await site.coordinator(Fence(6))
    site.service.turn_to(old)
    first = await site.node("only-the-old-one-knows")
    site.service.turn_to(new)
    a = await site.node("a")
    await heard_of(first, "a")
    site.service.turn_to(old)
    with pytest.raises(TierUnavailable):
        await a.membership.claim(LLAMA)
    assert a.membership.mounted() == frozenset()


async def test_a_node_that_is_started_again_still_does_not_listen_to_the_older_one(site: Site) -> None:
    old, new = await site.coordinator(Deaf(5)), await site.coordinator(Fence(6))
    site.service.turn_to(new)
    a, b = await site.node("a"), await site.node("b")
    await heard_of(a, "b")
    await b.die()
    await a.die()
    site.service.turn_to(old)
    again = await site.cluster.start("a", config=a.config)
    with pytest.raises(TierUnavailable):
        await again.membership.claim(LLAMA)
    assert again.membership.mounted() == frozenset(), "whatever was granted"
    site.service.turn_to(new)
    await again.membership.claim(LLAMA)


async def test_what_changed_while_another_one_was_asked_is_told_whole(site: Site) -> None:
    first, second = await site.coordinator(Fence(5)), await site.coordinator(Fence(6))
    site.service.turn_to(first)
    a = await site.node("a")
    await a.membership.claim(LLAMA)
    site.service.turn_to(second)
    b = await site.node("b")
    await heard_of(b, "a")
    (seen,) = [member for member in b.membership.members() if member.node == "a"]
    assert seen.mounted == {LLAMA}
