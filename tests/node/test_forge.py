"""Keepers are forked from one process: it may die, and the next keeper starts another."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from fuse_tier.errors import MountError
from fuse_tier.node.forge import Forge
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

_PYTHON = (sys.executable, "-P", "-m")


async def refused_by(forge: Forge) -> dict[str, Any]:
    """What a keeper says to parameters that are none, and that its end is known."""
    child = await forge.start(json.dumps({"nonsense": True}))
    with trio.fail_after(30):
        said = await child.next_line()
        assert await child.wait() == 1
    child.close()
    assert said is not None
    return said


async def test_the_process_that_keepers_are_forked_from_may_die(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("forge.ended")
    async with trio.open_nursery() as nursery:
        forge = Forge((*_PYTHON, "fuse_tier.fs"), (*_PYTHON, "fuse_tier.fs.many"), nursery)
        said = await refused_by(forge)
        assert "nonsense" in said["error"]["message"]
        (many,) = running("fuse_tier.fs.many")
        os.kill(many, signal.SIGKILL)

        async def another_is_started() -> bool:
            try:
                await refused_by(forge)
            except MountError:
                return False
            return True

        await until(another_is_started)
        assert running("fuse_tier.fs.many") != {many}
        nursery.cancel_scope.cancel()


def test_it_ends_quietly_with_a_supervisor_that_was_killed_before_it_read_what_it_was_told() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output, written = os.pipe()
    with ours, theirs:
        many = subprocess.Popen([*_PYTHON, "fuse_tier.fs.many"], stdin=theirs.fileno(), stderr=subprocess.PIPE)
        theirs.close()
        socket.send_fds(ours, [json.dumps({"nonsense": True}).encode()], [written])
        os.close(written)
        assert b"nonsense" in os.read(output, 1 << 12), "the keeper was started"
        os.close(output)
        _, (handle,), _, _ = socket.recv_fds(ours, 1 << 12, 1)
        os.close(handle)
        waiting = select.poll()
        waiting.register(ours, select.POLLIN)
        assert waiting.poll(30_000), "it tells that the keeper ended, and nobody reads it"
    _, said = many.communicate(timeout=30)
    assert (many.returncode, b"Traceback" in said) == (0, False), said


def running(module: str) -> set[int]:
    """Children of ours that run a module."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in children if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")}
