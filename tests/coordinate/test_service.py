"""The coordinator's calls over real gRPC on loopback."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier import metrics
from fuse_tier.config import CoordinatorConfig, TlsConfig
from fuse_tier.coordinate.server import run_coordinator, serve_coordinator
from fuse_tier.errors import (
    ConfigError,
    FuseTierError,
    IdentityBusy,
    InvalidRequest,
    NotAuthorized,
    TierRefused,
    TierUnavailable,
)
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import MINOR, location_from_wire, picture_from_wire
from fuse_tier.wire.tls import TlsFiles
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

LEASE = 1.0
IDENTITY = "default/llama/0"
_calls = itertools.count(1)


def configuration(**more: Any) -> CoordinatorConfig:
    return CoordinatorConfig.model_validate({"listen": f"127.0.0.1:{free_ports(1)[0]}", "lease": LEASE, **more})


@asynccontextmanager
async def coordinator(config: CoordinatorConfig) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_coordinator, config)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def calling(config: CoordinatorConfig, tls: TlsFiles | None = None) -> AsyncIterator[Client]:
    async with coordinator(config), Client(str(config.listen), CoordinatorStub, tls) as client:
        yield client


@asynccontextmanager
async def listening() -> AsyncIterator[str]:
    """An address at which something answers, as a node's control port would."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"


async def say(client: Client, node: str, control: str = "127.0.0.1:1", **more: Any) -> pb.ReportReply:
    request = pb.ReportRequest(
        cluster=more.pop("cluster", "default"),
        node=node,
        instance=f"{node}1",
        sequence=next(_calls),
        addresses=pb.Addresses(control=control, bulk="127.0.0.1:2"),
        **more,
    )
    reply: pb.ReportReply = await client.call("Report", request, 5)
    return reply


async def claim(client: Client, node: str, identity: str = IDENTITY) -> None:
    request = pb.ClaimRequest(identity=identity, node=node, instance=f"{node}1", sequence=next(_calls))
    await client.call("Claim", request, 5)


async def claim_when_settled(client: Client, node: str, control: str) -> None:
    while True:
        await say(client, node, control)
        try:
            await claim(client, node)
        except TierUnavailable:
            await trio.sleep(LEASE / 10)
        else:
            return


async def test_a_report_is_answered_with_every_member_and_the_lease() -> None:
    async with calling(configuration()) as client:
        await say(client, "b", zone="z", pool="p", host="h", capacity_bytes=10, free_bytes=5)
        reply = await say(client, "a", mounted=[IDENTITY])
    assert reply.lease_seconds == LEASE
    assert [(member.node, member.alive, list(member.mounted)) for member in reply.members] == [
        ("a", True, [IDENTITY]),
        ("b", True, []),
    ]
    assert (reply.members[1].zone, reply.members[1].pool, reply.members[1].host) == ("z", "p", "h")


async def test_what_is_mounted_on_a_node_that_answers_is_refused_to_others_by_name() -> None:
    async with calling(configuration()) as client, listening() as control:
        await claim_when_settled(client, "a", control)
        await say(client, "b")
        with pytest.raises(IdentityBusy, match=rf"{IDENTITY} is mounted on node a \({control}\)"):
            await claim(client, "b")


async def test_what_is_mounted_on_a_node_that_does_not_answer_may_be_asked_for_again(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow("coordinator.node_gone")
    (closed,) = free_ports(1)
    async with calling(configuration()) as client:
        await claim_when_settled(client, "a", f"127.0.0.1:{closed}")
        await say(client, "b")
        with pytest.raises(TierUnavailable, match=rf"node a, which doesn't answer at 127.0.0.1:{closed} any more"):
            await claim(client, "b")
        await claim_when_settled(client, "b", "127.0.0.1:1")


def saves(rank: int, *steps: int, **more: Any) -> pb.Saves:
    sizes = {"created_ms": [1_700_000_000_000 + step for step in steps], "bytes": [1 << 20] * len(steps)} | more
    return pb.Saves(
        identity=f"default/llama/{rank}", run="llama", world_size=2, numbers=steps, steps=[s + 1 for s in steps],
        **sizes,
    )  # fmt: skip


async def test_who_asks_is_told_of_complete_checkpoints_in_ram_and_in_the_bucket(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow(r"control\.request_refused")
    in_bucket = pb.Standing(
        job="default/llama", run="llama", ranks=2, step=5, created_ns=5, bytes=7, tiers=["bucket"]
    )
    async with calling(configuration()) as client:
        await say(client, "a", mounted=["default/llama/0"], saves=[saves(0, 10, 20)], standings=[in_bucket])
        await say(client, "b", mounted=["default/llama/1"], saves=[saves(1, 10, 30), saves(0, 10)])
        reply = await client.call("Checkpoints", pb.CheckpointsRequest(job="default/llama"), 5)
        others = await client.call("Checkpoints", pb.CheckpointsRequest(job="default/gpt"), 5)
        every = await client.call("Checkpoints", pb.CheckpointsRequest(), 5)
        for malformed in ("llama", "a/b/c", "../x"):
            with pytest.raises(InvalidRequest):
                await client.call("Checkpoints", pb.CheckpointsRequest(job=malformed), 5)
    ten = pb.Standing(
        job="default/llama", run="llama", ranks=2, step=10, created_ns=(1_700_000_000_000 + 10) * 10**6,
        bytes=2 << 20, tiers=["ram"],
    )  # fmt: skip
    assert list(reply.standings) == [ten, in_bucket]
    assert not others.standings
    assert every == reply


async def test_a_step_that_is_marked_bad_is_told_as_such() -> None:
    mark = pb.Mark(job="default/llama", run="llama", step=10, epoch=1)
    async with calling(configuration()) as client:
        await say(client, "a", saves=[saves(0, 10), saves(1, 10)], marks=[mark])
        reply = await client.call("Checkpoints", pb.CheckpointsRequest(), 5)
    assert [(one.step, one.bad) for one in reply.standings] == [(10, True)]


async def test_saves_that_make_no_sense_are_refused(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow(r"control\.request_refused")
    async with calling(configuration()) as client:
        for malformed in (
            saves(0, 10, created_ms=[1, 2]),
            saves(0, 10, bytes=[1, 2]),
            saves(0, 10, created_ms=[1 << 62]),
        ):
            with pytest.raises(InvalidRequest):
                await say(client, "a", saves=[malformed])
        # A node of an earlier version says neither.
        await say(client, "a", saves=[saves(0, 10, created_ms=[], bytes=[])])


async def test_a_released_identity_can_be_claimed_elsewhere() -> None:
    async with calling(configuration()) as client, listening() as control:
        await claim_when_settled(client, "a", control)
        released = pb.ReleaseRequest(identity=IDENTITY, node="a", instance="a1", sequence=next(_calls))
        await client.call("Release", released, 5)
        await say(client, "b")
        await claim(client, "b")


async def test_snapshots_are_located_and_pictured() -> None:
    async with calling(configuration()) as client:
        await say(
            client,
            "a",
            mounted=[IDENTITY],
            holdings=[pb.Holding(identity=IDENTITY, numbers=[1, 2])],
            bucket=[pb.Holding(identity=IDENTITY, numbers=[1])],
        )
        location = location_from_wire(await client.call("Locate", pb.LocateRequest(identity=IDENTITY), 5))
        picture = picture_from_wire(await client.call("Picture", pb.Empty(), 5))
    assert [(member.node, numbers) for member, numbers in location.holders] == [("a", (1, 2))]
    assert location.bucket == (1,)
    assert [(str(volume.identity), volume.mounted_on) for volume in picture.volumes] == [(IDENTITY, "a")]
    assert set(location.owners.values()) == {"a"}
    pictured = picture.volumes[0].location
    assert replace(pictured, is_settled=location.is_settled, owners=location.owners) == location


async def test_a_node_of_another_cluster_is_refused_and_told_which(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("coordinator.report_refused")
    async with calling(configuration(cluster="blue")) as client:
        with pytest.raises(TierRefused, match="of cluster 'green', this coordinator of 'blue'"):
            await say(client, "a", cluster="green")
        assert not (await client.call("Picture", pb.Empty(), 5)).members


@pytest.mark.parametrize(
    "wrong",
    [
        {"mounted": ["../../etc/passwd"]},
        {"mounted": ["default/llama"]},
        {"holdings": [pb.Holding(identity=IDENTITY, numbers=[0])]},
        {"holdings": [pb.Holding(identity=IDENTITY, numbers=[1 << 63])]},
        {"control": "nowhere"},
        {"control": "127.0.0.1:99999"},
        {"zone": "a\nb"},
        {"host": "x" * 1000},
        {"owned": [pb.Ownership(identity="default/llama", epoch=1)]},
        {"owned": [pb.Ownership(identity=IDENTITY, epoch=1 << 60)]},
        {"clock": 1 << 60},
    ],
)
async def test_a_malformed_report_is_refused_whole(wrong: dict[str, Any], expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("control.request_refused")
    async with calling(configuration()) as client:
        with pytest.raises(InvalidRequest):
            await say(client, "a", **wrong)
        assert not (await client.call("Picture", pb.Empty(), 5)).members


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\n", "x" * 300])
async def test_a_node_with_a_malformed_name_is_refused(name: str, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("control.request_refused")
    async with calling(configuration()) as client:
        with pytest.raises(InvalidRequest):
            await say(client, name)


async def test_a_refused_node_is_logged_once(expected_logs: ExpectedLogs) -> None:
    async with calling(configuration(cluster="blue")) as client:
        for _ in range(3):
            with pytest.raises(TierRefused):
                await say(client, "a", cluster="green")
    assert [line.event for line in expected_logs.unannounced()] == ["coordinator.report_refused"]
    expected_logs.allow("coordinator.report_refused")


async def test_an_identity_mounted_twice_is_an_error_in_the_log(expected_logs: ExpectedLogs) -> None:
    async with calling(configuration()) as client:
        await say(client, "a", mounted=[IDENTITY])
        await say(client, "b", mounted=[IDENTITY])
        await say(client, "b", mounted=[IDENTITY])
    (line,) = expected_logs.unannounced()
    assert line.event == "coordinator.mounted_twice"
    assert "unmount it on b" in line.text
    expected_logs.allow("coordinator.mounted_twice")


async def test_a_node_speaks_only_for_its_certificate(tmp_path: Path, expected_logs: ExpectedLogs) -> None:
    labels = {"reason": "certificate"}
    counted = partial(metrics.REGISTRY.get_sample_value, "fuse_tier_rejected_connections_total", labels)
    before = counted() or 0.0
    make_authority(str(tmp_path))
    server, node = (make_certificate(str(tmp_path), name) for name in ("coordinator", "a"))
    config = configuration(tls=TlsConfig(ca=server.ca, cert=server.cert, key=server.key))
    async with calling(config, tls=node) as client:
        await say(client, "a")
        with pytest.raises(NotAuthorized, match="certificate of node 'a' and speaks as 'b'"):
            await say(client, "b")
        with pytest.raises(NotAuthorized):
            await claim(client, "b")
        with pytest.raises(NotAuthorized):
            await client.call("Release", pb.ReleaseRequest(identity=IDENTITY, node="b", instance="b1"), 5)
    (line,) = expected_logs.unannounced()  # of a host, for one reason: once a minute
    assert line.event == "peer.refused"
    assert "address='127.0.0.1:" in line.text
    assert counted() == before + 3
    expected_logs.allow("peer.refused")


async def test_reports_of_a_stream_are_taken_as_calls_are_and_one_that_is_refused_ends_it(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.refused")
    make_authority(str(tmp_path))
    server, node = (make_certificate(str(tmp_path), name) for name in ("coordinator", "a"))
    config = configuration(tls=TlsConfig(ca=server.ca, cert=server.cert, key=server.key))
    said: dict[str, Any] = {
        "cluster": "default", "instance": "a1", "addresses": pb.Addresses(control="127.0.0.1:1", bulk="127.0.0.1:2"),
    }  # fmt: skip
    async with calling(config, tls=node) as client:
        stream = client.converse("Reports")
        held = [pb.Holding(identity=IDENTITY, numbers=[1])]
        whole = await stream.ask(pb.ReportRequest(node="a", sequence=1, holdings=held, **said), 5)
        same = await stream.ask(pb.ReportRequest(node="a", sequence=2, since=1, **said), 5)
        assert (whole.term, whole.minor, whole.unknown) == (same.term, MINOR, same.unknown)
        assert (await stream.ask(pb.ReportRequest(node="a", sequence=3, since=1, **said), 5)).unknown
        reply = await client.call("Locate", pb.LocateRequest(identity=IDENTITY), 5)
        assert [(one.member.node, list(one.numbers)) for one in reply.holders] == [("a", [1])]
        with pytest.raises(NotAuthorized, match="certificate of node 'a' and speaks as 'b'"):
            await stream.ask(pb.ReportRequest(node="b", sequence=1, **said), 5)
        assert not stream.is_usable
        stream.close()


async def test_a_caller_without_a_certificate_gets_nothing(tmp_path: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("control.connection_refused")
    make_authority(str(tmp_path))
    server = make_certificate(str(tmp_path), "coordinator")
    config = configuration(tls=TlsConfig(ca=server.ca, cert=server.cert, key=server.key))
    async with calling(config) as client:
        with pytest.raises(FuseTierError):
            await client.call("Picture", pb.Empty(), 5)


async def test_it_ends_when_it_is_asked_to() -> None:
    config = configuration(metrics=f"127.0.0.1:{free_ports(1)[0]}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_coordinator, config)
        async with Client(str(config.listen), CoordinatorStub, None) as client:

            async def answers() -> bool:
                try:
                    await client.call("Picture", pb.Empty(), 5)
                except TierUnavailable:
                    return False
                return True

            await until(answers)
        os.kill(os.getpid(), signal.SIGTERM)


async def test_an_address_that_is_taken_is_a_clear_error() -> None:
    config = configuration()
    async with coordinator(config):
        with pytest.raises(ExceptionGroup) as failed:
            await serve_coordinator(config)
    assert failed.group_contains(ConfigError, match=str(config.listen))
