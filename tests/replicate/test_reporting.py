"""How a node's reports get to coordinators of this version and of earlier ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.replicate.reporting import Reporting
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub, add_CoordinatorServicer_to_server
from fuse_tier.wire.grpc import Caller, Client, serve
from tests.harness.waiting import until


class Earlier:
    """A coordinator that knows of no stream."""

    def __init__(self, life: str) -> None:
        self.life = life
        self.calls = 0
        self.messages = 0

    async def Report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:  # noqa: N802 - its wire name
        self.calls += 1
        return self._answer(request)

    def _answer(self, request: pb.ReportRequest) -> pb.ReportReply:
        if request.node == "unloved":
            raise TierRefused("not you")
        return pb.ReportReply(epoch=self.life)


class Present(Earlier):
    def Reports(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:  # noqa: N802 - its wire name
        self.messages += 1
        return self._answer(request)


@asynccontextmanager
async def serving(address: str, servicer: object) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, [(add_CoordinatorServicer_to_server, servicer)], address, None))
        yield
        nursery.cancel_scope.cancel()


async def test_reports_go_over_one_stream_and_over_another_after_one_was_refused() -> None:
    address, coordinator = f"127.0.0.1:{free_ports(1)[0]}", Present("1")
    calling = Client(address, CoordinatorStub, None)
    async with serving(address, coordinator), calling as client, Reporting(client) as reporting:
        assert not reporting.goes_on
        for _ in range(3):
            assert (await reporting.send(pb.ReportRequest(node="a"), 5)).epoch == "1"
            assert reporting.goes_on
        with pytest.raises(TierRefused, match="not you"):
            await reporting.send(pb.ReportRequest(node="unloved"), 5)
        assert not reporting.goes_on
        assert (await reporting.send(pb.ReportRequest(node="a"), 5)).epoch == "1"
    assert (coordinator.messages, coordinator.calls) == (5, 0)


async def test_an_earlier_coordinator_is_called_and_a_later_one_in_its_place_gets_a_stream() -> None:
    address, earlier, present = f"127.0.0.1:{free_ports(1)[0]}", Earlier("1"), Present("2")
    async with Client(address, CoordinatorStub, None) as client, Reporting(client) as reporting:
        async with serving(address, earlier):
            for _ in range(3):
                assert (await reporting.send(pb.ReportRequest(node="a"), 5)).epoch == "1"
            assert earlier.calls == 3
        async with serving(address, present):

            async def has_a_stream() -> bool:
                with suppress(TierUnavailable):  # not before the backoff after a failed connection is over
                    await reporting.send(pb.ReportRequest(node="a"), 5)
                return present.messages > 0

            await until(has_a_stream)
    assert present.calls <= 1


async def test_a_coordinator_that_was_started_again_gets_the_next_report_by_another_stream() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    async with Client(address, CoordinatorStub, None) as client, Reporting(client) as reporting:
        for life in "123":
            async with serving(address, Present(life)):

                async def is_answered(life: str = life) -> bool:
                    with suppress(TierUnavailable):
                        return (await reporting.send(pb.ReportRequest(node="a"), 5)).epoch == life
                    return False

                await until(is_answered)
