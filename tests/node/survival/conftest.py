"""A node with one mounted volume, and what befalls it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.identity import Identity
from tests.harness.waiting import until
from tests.node.conftest import Node, StartNode, is_running, make_volume

VOLUME = Identity("default", "job", "0")


async def mount(node: Node, at: Path) -> None:
    await node.call("mount", identity=str(VOLUME), mountpoint=str(at), read_only=False)


async def the_mount(node: Node) -> dict[str, Any]:
    (listed,) = await node.call("mounts")
    return dict(listed)


async def gone(*pids: int) -> None:
    async def are_gone() -> bool:
        return not any(map(is_running, pids))

    await until(are_gone)


async def kill(node: Node) -> None:
    """The supervisor alone, whose worker dies with it."""
    node.tell(signal.SIGKILL)
    await node.ended()
    await gone(*node.workers)


@asynccontextmanager
async def job_at(mountpoint: Path) -> AsyncIterator[dict[str, Any]]:
    """A job writes all the while, and notices nothing; gives what it says at its end."""
    command = [sys.executable, "-m", "tests.fs.torture", str(mountpoint), str(1 << 20)]
    job = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdin and job.stdout
    try:
        said = b""
        while b"\n" not in said:
            said += await job.stdout.receive_some(1000)
        assert said == b'{"ready": true}\n'
        told: dict[str, Any] = {}
        yield told
        await job.stdin.aclose()
        told |= json.loads(b"".join([part async for part in job.stdout]))
        assert told["errors"] == []
        assert told["rounds"] > 0
    finally:
        job.kill()
        await job.wait()


def take_away(mountpoint: Path) -> None:
    subprocess.run(["fusermount3", "-u", str(mountpoint)], check=True, capture_output=True)


@pytest.fixture
async def node(start_node: StartNode, mountpoint: Path) -> Node:
    """A node with a volume that is mounted."""
    node = start_node()
    assert node.line().startswith("node a is ready")
    make_volume(node.ram, VOLUME)
    await mount(node, mountpoint)
    return node


@pytest.fixture
def start_again(start_node: StartNode, node: Node) -> Callable[..., Node]:
    """The next supervisor of the same node."""

    def start(**settings: Any) -> Node:
        again = start_node(ram=node.ram, socket=node.socket, **settings)
        assert again.line().startswith("node a is ready")
        return again

    return start
