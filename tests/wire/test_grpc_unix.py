"""Calls over a socket of this machine: who may, what is left there, and streams of steps."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import ConfigError, DeadlineExceeded, MountError, TierUnavailable
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import NodeStub, add_NodeServicer_to_server
from fuse_tier.wire.grpc import Caller, Client, serve


class NodeServicer:
    """Three steps, and then what the identity says."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def Mount(self, request: pb.MountRequest, caller: Caller) -> AsyncIterator[pb.Step]:  # noqa: N802
        try:
            for moved in range(3):
                yield pb.Step(moved_bytes=moved)
            if request.identity == "fails":
                raise MountError("the mountpoint is a file")
            if request.identity == "hangs":
                await trio.sleep_forever()
        finally:
            self.ended.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sock"


@pytest.fixture
def node() -> NodeServicer:
    return NodeServicer()


@pytest.fixture
async def client(path: Path, node: NodeServicer) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, [(add_NodeServicer_to_server, node)], f"unix:{path}", None))
        async with Client(f"unix:{path}", NodeStub, None) as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_a_socket_is_its_owners_alone_and_goes_with_the_server(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, [], f"unix:{path}", None))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(path.parent) == ["node.sock"]
        nursery.cancel_scope.cancel()
    assert os.listdir(path.parent) == []


async def test_a_socket_left_from_before_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, [], f"unix:{path}", None))
        nursery.cancel_scope.cancel()


async def test_a_socket_that_is_served_is_left_alone(path: Path, client: Client) -> None:
    with pytest.raises(ConfigError, match=f"{path}: another process serves it"):
        await serve([], f"unix:{path}", None)
    assert [step.moved_bytes async for step in client.stream("Mount", pb.MountRequest(), 5)] == [0, 1, 2]


async def test_a_path_too_long_or_missing_is_a_config_error(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 120), tmp_path / "missing" / "node.sock"):
        with pytest.raises(ConfigError, match="cannot listen on"):
            await serve([], f"unix:{path}", None)


async def test_nobody_there_is_said_with_the_path(path: Path) -> None:
    async with Client(f"unix:{path}", NodeStub, None) as client:
        with pytest.raises(TierUnavailable, match=f"{path} does not answer: there is no such socket"):
            await client.call("Status", pb.Empty(), 5)


async def test_a_stream_brings_its_steps_in_order(client: Client) -> None:
    steps = [step.moved_bytes async for step in client.stream("Mount", pb.MountRequest(), 5)]
    assert steps == [0, 1, 2]


async def test_a_stream_ends_with_what_its_handler_raised(client: Client) -> None:
    steps = []
    with pytest.raises(MountError, match="the mountpoint is a file"):
        async for step in client.stream("Mount", pb.MountRequest(identity="fails"), 5):
            steps.append(step.moved_bytes)
    assert steps == [0, 1, 2]


async def test_a_stream_keeps_its_deadline(client: Client, node: NodeServicer) -> None:
    with pytest.raises(DeadlineExceeded, match="Mount at"):
        async for _ in client.stream("Mount", pb.MountRequest(identity="hangs"), 0.2):
            pass
    await node.ended.wait()


async def test_leaving_a_stream_ends_its_handler(client: Client, node: NodeServicer) -> None:
    async for _ in client.stream("Mount", pb.MountRequest(identity="hangs"), None):
        break
    await node.ended.wait()


async def test_cancelling_a_stream_ends_its_handler(client: Client, node: NodeServicer) -> None:
    with trio.CancelScope() as scope:
        async for step in client.stream("Mount", pb.MountRequest(identity="hangs"), None):
            if step.moved_bytes == 2:
                scope.cancel()
    await node.ended.wait()
